"""The embedded scenes as a source of images: `scenes`,
`scenes:?size=96&count=5000&seed=1&split=held_out`."""

import hashlib
from functools import lru_cache

from torch import Tensor

from vision_core.errors import UserError
from vision_core.images.source import ImageRecord, ImageSource
from vision_core.scenes.draw import SMALLEST_SIDE, Scene, draw_scene
from vision_core.scenes.layout import CATEGORIES, SPLITS, category_of

DEFAULTS = {"size": "64", "count": "20000", "seed": "0", "split": "train"}


class ScenesSource(ImageSource):
    """`count` scenes of one split, drawn when they are asked for. Labels are known without drawing
    and are balanced."""

    def __init__(self, size: int, count: int, seed: int, split: str) -> None:
        self.size, self.count, self.seed, self.split = size, count, seed, split
        self.class_names = list(CATEGORIES)
        self.labels = [category_of(seed, split, index) for index in range(count)]
        self.annotations = SceneAnnotations(self)
        self.description = f"embedded scenes ({split}, seed {seed}): {count} images of {size} x {size} pixels, {len(CATEGORIES)} categories"

    def __len__(self) -> int:
        return self.count

    @property
    def fingerprint(self) -> str:
        """The options, and how the scenes of this version look."""
        first = draw_scene(self.seed, 0, self.size, self.split).image
        looks = hashlib.blake2b(first.numpy().tobytes(), digest_size=8).hexdigest()
        return f"scenes {self.size} {self.count} {self.seed} {self.split} {looks}"

    def __getitem__(self, index: int) -> ImageRecord:
        """Record `index`: image uint8 [3, size, size], label the category of the main object.
        Raises IndexError outside 0 .. count - 1."""
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        scene = draw_scene(self.seed, index, self.size, self.split)
        return ImageRecord(self.id_of(index), scene.image, scene.category)

    def id_of(self, index: int) -> str:
        return f"scenes/{self.split}/{index}"


class SceneAnnotations:
    """The ground truth of scenes, drawn with them; see `annotations.Annotations`."""

    names = frozenset({"mask", "depth", "captions"})
    image_ids = copy_of = None
    mask_names = ["backdrop", *CATEGORIES]

    def __init__(self, source: ScenesSource) -> None:
        self._name = (source.seed, source.size, source.split)

    def mask(self, index: int) -> Tensor:
        """`[S, S]` int64: 0 for the backdrop, else 1 + the category of the object that is seen
        there."""
        scene = _drawn(*self._name, index)
        numbers = [0, *(1 + CATEGORIES.index(each.category) for each in scene.objects)]
        return scene.masks.new_tensor(numbers).long()[scene.masks.long()]

    def foreground(self, index: int) -> Tensor:
        """`[S, S]` bool: the main object."""
        return _drawn(*self._name, index).masks == 1

    def depth(self, index: int) -> Tensor:
        """`[S, S]` float32 metres."""
        return _drawn(*self._name, index).depth.clone()

    def captions(self, index: int) -> list[str]:
        """Sentences that are true of scene number `index`."""
        return list(_drawn(*self._name, index).captions)


@lru_cache(maxsize=8)
def _drawn(seed: int, size: int, split: str, index: int) -> Scene:
    """A scene that is asked for its mask is soon asked for its depth."""
    return draw_scene(seed, index, size, split)


def open_scenes(options: dict[str, str]) -> ScenesSource:
    """Scenes by the options size (pixels, default 64), count (20000), seed (0), split ("train" or
    "held_out").

    Raises UserError for an unknown option or a value that cannot be drawn.
    """
    unknown = sorted(set(options) - set(DEFAULTS))
    if unknown:
        raise UserError(f"scenes: unknown option {unknown[0]!r}; the options are {', '.join(DEFAULTS)}")
    chosen = {**DEFAULTS, **options}
    if chosen["split"] not in SPLITS:
        raise UserError(f"scenes: unknown split {chosen['split']!r}; use {' or '.join(SPLITS)}")
    size, count, seed = (
        _at_least(chosen, "size", SMALLEST_SIDE),
        _at_least(chosen, "count", 1),
        _at_least(chosen, "seed", 0),
    )
    return ScenesSource(size, count, seed, chosen["split"])


def _at_least(chosen: dict[str, str], option: str, smallest: int) -> int:
    text = chosen[option]
    if not (text.isascii() and text.isdigit()) or int(text) < smallest:
        raise UserError(f"scenes: {option}={text} is not possible; give a whole number of {smallest} or more")
    return int(text)
