import pickle
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from vision_core.images.held_out import hold_out
from vision_core.images.open_source import open_source
from vision_core.randomness import numpy_generator


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Classes of 40, 20 and 1 images, each of another colour, and a mask for each."""
    root = tmp_path_factory.mktemp("data")
    number = 0
    for name, count in (("a", 40), ("b", 20), ("c", 1)):
        for kind in ("images", "masks"):
            (root / kind / name).mkdir(parents=True)
        for index in range(count):
            number += 1
            Image.fromarray(np.full((9, 9, 3), number, np.uint8)).save(
                root / "images" / name / f"{index:02d}.png"
            )
            Image.fromarray(np.full((9, 9), number, np.uint8)).save(
                root / "masks" / name / f"{index:02d}.png"
            )
    return root


def test_both_parts_are_the_whole_and_a_function_of_the_seed(folder):
    source = open_source(f"folder:{folder}/images")
    part = hold_out(source, seed=0)
    assert len(part) == 55 and len(part.held_out) == 6
    assert sorted(part.indices + part.held_out.indices) == list(range(61))
    assert (
        hold_out(source, seed=0).held_out.indices
        == part.held_out.indices
        != hold_out(source, seed=1).held_out.indices
    )
    assert part.fingerprint == hold_out(source, seed=0).fingerprint != part.held_out.fingerprint
    assert part.description == f"{source.description}; 6 of them are held out of training"
    assert len(hold_out(source, seed=0, most=2).held_out) == 2


@pytest.mark.parametrize("seed", range(5))
def test_every_class_keeps_an_image_to_train_on(folder, seed):
    part = hold_out(open_source(f"folder:{folder}/images"), seed)
    assert set(part.labels) == {0, 1, 2} and 2 not in part.held_out.labels


def test_images_names_labels_and_annotations_go_together(folder):
    source = open_source(f"folder:{folder}/images?mask={folder}/masks")
    part = pickle.loads(pickle.dumps(hold_out(source, seed=0)))  # as a data worker gets it
    for each in (part, part.held_out):
        assert each.knows == {"mask", "label"} and each.class_names == ["a", "b", "c"]
        for index in range(len(each)):
            record, number = each[index], each.indices[index] + 1
            assert (
                record.id == each.id_of(index) == source.id_of(number - 1)
                and record.label == each.labels[index]
            )
            assert (record.image == number).all() and (each.annotations.mask(index) == number).all()


def test_captions_and_no_labels():
    source = open_source("scenes?size=32&count=30")
    part = hold_out(source, seed=0)
    assert part.held_out.annotations.captions(1) == source.annotations.captions(part.held_out.indices[1])
    source.labels = None
    assert len(hold_out(source, seed=0).held_out) == 3 and hold_out(source, seed=0).labels is None


def test_images_of_one_file_stay_on_one_side(tmp_path):
    """Slices of a volume are alike: six archives of twenty images were all on both sides."""
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(12):
            images = {f"{place:02}": generator.integers(0, 255, (9, 9), dtype=np.uint8) for place in range(5)}
            np.savez(tmp_path / name / f"{number}.npz", **images)
    source = open_source(f"folder:{tmp_path}")
    part = hold_out(source, seed=0)
    sides = [{each.file_of(index) for index in range(len(each))} for each in (part, part.held_out)]
    assert len(part.held_out) == 10 and len(sides[1]) == 2 and not sides[0] & sides[1]
    assert set(part.held_out.labels) <= set(part.labels)


@pytest.mark.parametrize(("files", "held_out"), [(6, 20), (3, 20), (2, 0), (1, 0)])
def test_where_every_file_is_larger_than_a_tenth_one_of_them_is_held_out(tmp_path, files, held_out):
    for number in range(files):
        np.savez(
            tmp_path / f"{number}.npz",
            **{f"{place:02}": np.full((9, 9), place, np.uint8) for place in range(20)},
        )
    part = hold_out(open_source(f"folder:{tmp_path}"), seed=0)
    assert len(part.held_out) == held_out and len(part) == 20 * files - held_out
    assert not {part.file_of(index) for index in range(len(part))} & {
        part.held_out.file_of(index) for index in range(held_out)
    }


def test_the_draw_of_images_that_are_files_is_that_of_earlier_versions(folder):
    """By the rule that they had: the first tenth of the permutation of which every class has one
    left."""
    source = open_source(f"folder:{folder}/images")
    for seed in range(5):
        left, drawn = Counter(source.labels), []
        for index in numpy_generator(seed, "held out").permutation(61).tolist():
            if len(drawn) < 6 and left[source.labels[index]] > 1:
                left[source.labels[index]] -= 1
                drawn.append(index)
        assert hold_out(source, seed).held_out.indices == sorted(drawn)


def test_many_tiles_of_few_slides_are_drawn_at_once(tmp_path):
    """The classes of a slide are counted once for each slide: once for each tile were 20 million,
    and 6 seconds."""

    class Looked(list):
        count = 0

        def __getitem__(self, index):
            self.count += 1
            return super().__getitem__(index)

    np.savez(tmp_path / "one.npz", **{str(place): np.zeros((9, 9), np.uint8) for place in range(300)})
    np.savez(tmp_path / "two.npz", **{str(place): np.zeros((9, 9), np.uint8) for place in range(300)})
    source = open_source(f"folder:{tmp_path}")
    source.labels = Looked([0] * 600)
    assert not len(hold_out(source, seed=0).held_out) and source.labels.count <= 2 * 600
