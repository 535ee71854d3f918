"""The embedded scenes as a source of images: `scenes`, `scenes:?size=96&count=5000&seed=1&split=held_out`."""

from vision_core.errors import UserError
from vision_core.images.scene_layout import CATEGORIES, SPLITS, category_of
from vision_core.images.scenes import SMALLEST_SIDE, draw_scene
from vision_core.images.sources import ImageRecord, ImageSource

DEFAULTS = {"size": "64", "count": "20000", "seed": "0", "split": "train"}


class ScenesSource(ImageSource):
    """`count` scenes of one split, drawn when they are asked for. Labels are known without drawing and are balanced."""

    def __init__(self, size: int, count: int, seed: int, split: str) -> None:
        self.size, self.count, self.seed, self.split = size, count, seed, split
        self.class_names = list(CATEGORIES)
        self.labels = [category_of(seed, split, index) for index in range(count)]
        self.description = f"embedded scenes ({split}, seed {seed}): {count} images of {size} x {size} pixels, {len(CATEGORIES)} categories"

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> ImageRecord:
        """Record `index`: image uint8 [3, size, size], label the category of the main object. Raises IndexError outside 0 .. count - 1."""
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        scene = draw_scene(self.seed, index, self.size, self.split)
        return ImageRecord(self.id_of(index), scene.image, scene.category)

    def id_of(self, index: int) -> str:
        return f"scenes/{self.split}/{index}"


def open_scenes(options: dict[str, str]) -> ScenesSource:
    """Scenes by the options size (pixels, default 64), count (20000), seed (0), split ("train" or "held_out").

    Raises UserError for an unknown option or a value that cannot be drawn.
    """
    unknown = sorted(set(options) - set(DEFAULTS))
    if unknown:
        raise UserError(f"scenes: unknown option {unknown[0]!r}; the options are {', '.join(DEFAULTS)}")
    chosen = {**DEFAULTS, **options}
    if chosen["split"] not in SPLITS:
        raise UserError(f"scenes: unknown split {chosen['split']!r}; use {' or '.join(SPLITS)}")
    size, count, seed = _at_least(chosen, "size", SMALLEST_SIDE), _at_least(chosen, "count", 1), _at_least(chosen, "seed", 0)
    return ScenesSource(size, count, seed, chosen["split"])


def _at_least(chosen: dict[str, str], option: str, smallest: int) -> int:
    text = chosen[option]
    if not (text.isascii() and text.isdigit()) or int(text) < smallest:
        raise UserError(f"scenes: {option}={text} is not possible; give a whole number of {smallest} or more")
    return int(text)
