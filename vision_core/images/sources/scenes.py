"""The drawn scenes as a source of images: `scenes`, `scenes?size=96&count=5000&seed=1&split=held_out`."""

import hashlib
from functools import lru_cache

from torch import Tensor

from vision_core.errors import UserError
from vision_core.images.source import Annotations, ImageRecord, ImageSource
from vision_core.scenes.defaults import (
    DEFAULT_COUNTS,
    DEFAULT_SEED,
    DEFAULT_SIZE,
    DEFAULT_SPLIT,
    SCENE_SPLITS,
)
from vision_core.scenes.draw import SMALLEST_SIDE, Scene, draw_scene
from vision_core.scenes.layout import CATEGORIES, category_of

SCENE_OPTIONS = ("size", "count", "seed", "split")


class ScenesSource(ImageSource):
    """`count` scenes of one split, drawn when they are asked for. Labels are known without drawing
    and are balanced."""

    def __init__(self, size: int, count: int, seed: int, split: str) -> None:
        self.size = size
        self.count = count
        self.seed = seed
        self.split = split
        self.class_names = list(CATEGORIES)
        self.labels = [category_of(seed, split, index) for index in range(count)]
        self.annotations = SceneAnnotations(self)
        self.description = (
            f"embedded scenes ({split}, seed {seed}): {count} images of {size} x {size} pixels, "
            f"{len(CATEGORIES)} categories"
        )

    def __len__(self) -> int:
        return self.count

    @property
    def fingerprint(self) -> str:
        """The options and a hash of the first scene, which changes when scenes look different."""
        first = draw_scene(self.seed, 0, self.size, self.split).image
        looks = hashlib.blake2b(first.numpy().tobytes(), digest_size=8).hexdigest()
        return f"scenes {self.size} {self.count} {self.seed} {self.split} {looks}"

    def __getitem__(self, index: int) -> ImageRecord:
        """Draw scene `index`: the image is uint8 `[3, S, S]`, the label the category of the main
        object. Raises IndexError outside 0 .. count - 1."""
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        scene = draw_scene(self.seed, index, self.size, self.split)
        return ImageRecord(self.id_of(index), scene.image, scene.category)

    def id_of(self, index: int) -> str:
        return f"scenes/{self.split}/{index}"


class SceneAnnotations(Annotations):
    """The ground truth of scenes, drawn with them."""

    names = frozenset({"mask", "depth", "captions"})
    mask_names = ["backdrop", *CATEGORIES]

    def __init__(self, source: ScenesSource) -> None:
        self._seed = source.seed
        self._size = source.size
        self._split = source.split

    def mask(self, index: int) -> Tensor:
        """`[S, S]` int64: 0 for the backdrop, else 1 + the category of the visible object."""
        scene = self._draw(index)
        class_of_object = [0]
        class_of_object += [1 + CATEGORIES.index(each.category) for each in scene.objects]
        return scene.masks.new_tensor(class_of_object).long()[scene.masks.long()]

    def foreground(self, index: int) -> Tensor:
        """`[S, S]` bool: the main object."""
        return self._draw(index).masks == 1

    def depth(self, index: int) -> Tensor:
        """`[S, S]` float32 metres."""
        return self._draw(index).depth.clone()

    def captions(self, index: int) -> list[str]:
        """Sentences that are true of scene number `index`."""
        return list(self._draw(index).captions)

    def _draw(self, index: int) -> Scene:
        return _draw_scene_once(self._seed, self._size, self._split, index)


@lru_cache(maxsize=8)
def _draw_scene_once(seed: int, size: int, split: str, index: int) -> Scene:
    """Draw a scene or recall it: after its mask, usually its depth is asked for."""
    return draw_scene(seed, index, size, split)


def open_scenes(options: dict[str, str]) -> ScenesSource:
    """Open scenes by the options size (pixels), count, seed and split ("train" or "held_out"); the
    defaults are those of `scenes/defaults.py`.

    Raises UserError for an unknown option or a value that cannot be drawn.
    """
    unknown = sorted(set(options) - set(SCENE_OPTIONS))
    if unknown:
        raise UserError(f"scenes: unknown option {unknown[0]!r}; the options are {', '.join(SCENE_OPTIONS)}")
    split = options.get("split", DEFAULT_SPLIT)
    if split not in SCENE_SPLITS:
        raise UserError(f"scenes: unknown split {split!r}; use {' or '.join(SCENE_SPLITS)}")
    return ScenesSource(
        size=_whole_number(options, "size", DEFAULT_SIZE, smallest=SMALLEST_SIDE),
        count=_whole_number(options, "count", DEFAULT_COUNTS[split], smallest=1),
        seed=_whole_number(options, "seed", DEFAULT_SEED, smallest=0),
        split=split,
    )


def _whole_number(options: dict[str, str], option: str, default: int, smallest: int) -> int:
    text = options.get(option, str(default))
    if not (text.isascii() and text.isdigit()) or int(text) < smallest:
        raise UserError(f"scenes: {option}={text} is not possible; give a whole number of {smallest} or more")
    return int(text)
