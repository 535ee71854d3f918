import pytest
import torch

from vision_core.errors import UserError
from vision_core.images.open_source import open_source
from vision_core.images.sources.scenes import open_scenes
from vision_core.scenes.draw import draw_scene
from vision_core.scenes.layout import CATEGORIES


def test_scenes_alone_are_those_of_the_defaults():
    source = open_source("scenes")
    assert (len(source), source.size, source.seed, source.split) == (20_000, 64, 0, "train")
    assert len(open_source("scenes?split=held_out")) == 2000


def test_scenes_know_everything():
    source = open_source("scenes?size=64&count=5&split=held_out")
    assert source.knows == {"label", "mask", "depth", "captions"}
    scene, known = draw_scene(0, 3, 64, "held_out"), source.annotations
    assert (
        torch.equal(known.foreground(3), scene.masks == 1)
        and torch.equal(known.depth(3), scene.depth)
        and known.captions(3) == scene.captions
    )
    assert known.mask(3)[scene.masks == 1].unique().tolist() == [1 + scene.category] and known.mask(3)[
        scene.masks == 0
    ].unique().tolist() == [0]
    assert len(known.mask_names) > int(known.mask(3).max())


def test_scenes_as_a_source():
    source = open_scenes({"size": "40", "count": "30", "seed": "2", "split": "held_out"})
    assert len(source) == len(source.labels) == 30 and source.class_names == list(CATEGORIES)
    record = source[17]
    assert record.id == source.id_of(17) == "scenes/held_out/17"
    assert record.label == source.labels[17] and torch.equal(
        record.image, draw_scene(2, 17, 40, "held_out").image
    )
    assert "30 images" in source.description and "held_out" in source.description
    assert len(open_scenes({})) == 20000
    with pytest.raises(IndexError):
        source[30]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"colour": "red"}, "unknown option 'colour'; the options are size, count, seed, split"),
        ({"size": "31"}, "size=31 is not possible; give a whole number of 32 or more"),
        ({"count": "0"}, "count=0"),
        ({"count": "many"}, "count=many"),
        ({"seed": "-1"}, "seed=-1"),
        ({"split": "test"}, "unknown split 'test'"),
    ],
)
def test_impossible_sources_are_refused(options: dict[str, str], message: str):
    with pytest.raises(UserError, match=message):
        open_scenes(options)
