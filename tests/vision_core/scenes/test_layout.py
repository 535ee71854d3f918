from collections import Counter

from vision_core.scenes.layout import CATEGORIES, TEXTURES_OF_KIND, draw_layout
from vision_core.scenes.textures import TEXTURES


def test_every_texture_belongs_to_two_kinds():
    counts = Counter(texture for own in TEXTURES_OF_KIND.values() for texture in own)
    assert set(TEXTURES_OF_KIND) == set(CATEGORIES) and counts == {texture: 2 for texture in TEXTURES}
    pairs = [
        set(one) & set(other)
        for one in TEXTURES_OF_KIND.values()
        for other in TEXTURES_OF_KIND.values()
        if one != other
    ]
    assert max(len(shared) for shared in pairs) == 1


def test_layouts_of_neighbouring_indices_differ():
    layouts = [draw_layout(0, index, "train").objects[0] for index in range(50)]
    assert len({placed.rotation for placed in layouts}) == 50
