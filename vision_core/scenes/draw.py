"""Draw the scenes: images that are deterministic by (seed, split, index), with ground truth for
everything that they show.

They stand in for data wherever there is none: `draw_scene(seed, index)` costs a few milliseconds,
needs no file and no network, and knows its own categories, masks, boxes, depth, captions and
question/answer pairs. Only pixels and masks are computed at once, the rest when it is asked for.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from vision_core.errors import UserError
from vision_core.scenes.colours import NAMED_COLOURS, oklch_to_rgb
from vision_core.scenes.defaults import DEFAULT_SIZE, DEFAULT_SPLIT, SCENE_SPLITS
from vision_core.scenes.language import Question, SceneObject, describe, question
from vision_core.scenes.layout import BACKDROP_DEPTH, CATEGORIES, Layout, Placed, draw_layout
from vision_core.scenes.shapes import EXTENT, SHAPES
from vision_core.scenes.textures import TEXTURES, smooth_noise, soft_inside

__all__ = ["CATEGORIES", "Question", "Scene", "SceneObject", "draw_scene"]

SMALLEST_SIDE = 32
SHADOW_SHIFT = 0.022
SHADOW_BLUR = 0.05
SHADOW_DARKNESS = 0.38


@dataclass
class Scene:
    """One picture and what is known about it.

    image: `[3, S, S]` uint8.
    category: the number of the category of the main object, which is the largest and nearest.
    masks: `[S, S]` uint8, 0 for the backdrop, i + 1 where object i is visible.
    """

    image: Tensor
    category: int
    masks: Tensor
    layout: Layout
    name: tuple[int | str, ...]

    @cached_property
    def objects(self) -> list[SceneObject]:
        """The objects, the main one first. Boxes (xyxy, pixels, end exclusive) and areas (pixels)
        cover the visible parts."""
        return [self._object(number, placed) for number, placed in enumerate(self.layout.objects, start=1)]

    @cached_property
    def depth(self) -> Tensor:
        """Metres from the viewer, `[S, S]` float32. An object is a tilted plate around its own
        depth, and the backdrop is a tilted wall behind all objects."""
        masks = self.masks.numpy()
        y, x = _pixel_grid(masks.shape[0])
        wall = BACKDROP_DEPTH[1] - self.layout.backdrop_tilt * y
        depth = np.broadcast_to(wall, masks.shape).astype(np.float32)
        for number, placed in enumerate(self.layout.objects, start=1):
            tilt_x = placed.tilt[0] * (x - placed.centre[0])
            tilt_y = placed.tilt[1] * (y - placed.centre[1])
            plate = placed.depth + tilt_x + tilt_y
            depth = np.where(masks == number, plate, depth)
        return torch.from_numpy(depth)

    @cached_property
    def captions(self) -> list[str]:
        """Sentences that are true of the picture, from short to long."""
        return describe(self.objects)

    @cached_property
    def questions(self) -> list[Question]:
        """Questions about what is shown and where, each with its answer and the possible
        answers."""
        return question(self.objects, side=self.masks.shape[0], name=self.name)

    def _object(self, number: int, placed: Placed) -> SceneObject:
        rows, columns = np.nonzero(self.masks.numpy() == number)
        box = (0, 0, 0, 0)
        if len(rows):
            box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
        return SceneObject(
            category=CATEGORIES[placed.category],
            colour=placed.colour,
            texture=placed.texture,
            box=box,
            depth=placed.depth,
            area=len(rows),
        )


def draw_scene(seed: int, index: int, size: int = DEFAULT_SIZE, split: str = DEFAULT_SPLIT) -> Scene:
    """Draw scene (seed, split, index) at size x size pixels; it is the same scene at every size.

    Raises UserError for a size below 32 or an unknown split.
    """
    if size < SMALLEST_SIDE:
        raise UserError(
            f"scenes: size {size} is too small to tell the shapes apart; use {SMALLEST_SIDE} or more"
        )
    if split not in SCENE_SPLITS:
        raise UserError(f"scenes: unknown split {split!r}; use {' or '.join(SCENE_SPLITS)}")
    layout = draw_layout(seed, index, split)
    picture = _draw_backdrop(layout, size)
    masks = np.zeros((size, size), np.uint8)
    farthest_first = sorted(enumerate(layout.objects, start=1), key=_nearness)
    for number, _ in farthest_first:
        _draw_object(picture, masks, number, layout)
    image = torch.from_numpy((np.clip(picture, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8))
    return Scene(image, layout.objects[0].category, torch.from_numpy(masks), layout, (seed, split, index))


def _nearness(numbered: tuple[int, Placed]) -> float:
    return -numbered[1].depth


def _pixel_grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """The centres of the pixels in sides of the picture: y `[S, 1]`, x `[1, S]`."""
    at = (np.arange(size, dtype=np.float32) + 0.5) / size
    return at[:, None], at[None, :]


def _draw_backdrop(layout: Layout, size: int) -> np.ndarray:
    """Draw a soft gradient between two muted tones with cloudy variations of two scales, under the
    habitat's pattern: `[3, S, S]` float32."""
    y, x = _pixel_grid(size)
    at = y[:, 0]
    coarse = smooth_noise(layout.noise[0, :5, :5], at * 4, at * 4)
    fine = smooth_noise(layout.noise[1], at * 13, at * 13)
    clouds = 0.7 * coarse + 0.45 * fine
    along = np.cos(layout.backdrop_direction) * (x - 0.5) + np.sin(layout.backdrop_direction) * (y - 0.5)
    share = np.clip(0.5 + 0.9 * along + 0.3 * clouds, 0.0, 1.0).astype(np.float32)
    start, end = (oklch_to_rgb(*tone) for tone in layout.backdrop_tones)
    towards_light = layout.light_strength * _towards_light(layout, x - 0.5, y - 0.5)
    light = 1.0 + layout.backdrop_contrast * clouds + towards_light
    light = light * (1.0 + layout.habitat.contrast * (_habitat_pattern(layout, x, y) - 0.5))
    return (start[:, None, None] + (end - start)[:, None, None] * share) * light.astype(np.float32)


def _habitat_pattern(layout: Layout, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The mix of the two tones of the backdrop's pattern, `[S, S]` float32 in [0, 1]."""
    habitat = layout.habitat
    at = y[:, 0]
    u, v = _texture_frame(habitat.rotation, habitat.period, habitat.offset, x - 0.5, y - 0.5)
    noise = smooth_noise(layout.noise[0], at * 13, at * 13)
    draw_texture = TEXTURES[habitat.texture]
    return draw_texture(u, v, 1 / (len(at) * habitat.period), noise)


def _texture_frame(
    rotation: float, period: float, offset: tuple[float, float], x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates u, v in the frame of a pattern, in periods."""
    cos = np.float32(np.cos(rotation) / period)
    sin = np.float32(np.sin(rotation) / period)
    u = cos * x + sin * y + np.float32(offset[0])
    v = cos * y - sin * x + np.float32(offset[1])
    return u, v


def _towards_light(layout: Layout, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.float32(np.cos(layout.light_direction)) * x + np.float32(np.sin(layout.light_direction)) * y


def _draw_object(picture: np.ndarray, masks: np.ndarray, number: int, layout: Layout) -> None:
    """Draw one object and its shadow over what is there, in the window that holds both."""
    placed = layout.objects[number - 1]
    size = masks.shape[0]
    radius = placed.diameter / 2
    pixel = 1.0 / size
    reach = EXTENT * radius + 2 * SHADOW_SHIFT
    rows = _window(placed.centre[1], reach, size)
    columns = _window(placed.centre[0], reach, size)
    y, x = _pixel_grid(size)
    y = y[rows] - np.float32(placed.centre[1])
    x = x[:, columns] - np.float32(placed.centre[0])
    to_object, to_shadow = _distances(placed, layout.light_direction, x, y)
    inside = soft_inside(to_object, pixel)
    shadow = SHADOW_DARKNESS * soft_inside(to_shadow, SHADOW_BLUR)
    window = picture[:, rows, columns]
    window *= 1.0 - shadow * (1.0 - inside)
    window += inside * (_surface(placed, layout, x, y, to_object, pixel, (rows, columns)) - window)
    masks[rows, columns][inside >= 0.5] = number


def _window(centre: float, reach: float, size: int) -> slice:
    """The pixels of one axis that lie within `reach` of `centre`, both in sides."""
    start = max(0, int((centre - reach) * size))
    stop = min(size, int((centre + reach) * size) + 1)
    return slice(start, stop)


def _distances(placed: Placed, light_direction: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The signed distances to the edges of an object and of its shadow in sides, `[2, H, W]`; x and
    y are measured from the object's centre."""
    shift_x = np.float32(-SHADOW_SHIFT * np.cos(light_direction))
    shift_y = np.float32(-SHADOW_SHIFT * np.sin(light_direction))
    x_of_both = np.stack([x + 0 * y, x - shift_x + 0 * y])
    y_of_both = np.stack([y + 0 * x, y - shift_y + 0 * x])
    return placed.diameter / 2 * _distance(placed, x_of_both, y_of_both)


def _distance(placed: Placed, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The signed distance to the object's edge in radii; x and y are measured from its centre."""
    scale = np.float32(2.0 / placed.diameter)
    cos = np.float32(np.cos(placed.rotation)) * scale
    sin = np.float32(np.sin(placed.rotation)) * scale
    across = np.float32(placed.flip) * (cos * x + sin * y)
    down = cos * y - sin * x
    shape = SHAPES[CATEGORIES[placed.category]]
    return shape(across, down, *placed.variations)


def _surface(
    placed: Placed,
    layout: Layout,
    x: np.ndarray,
    y: np.ndarray,
    distance: np.ndarray,
    pixel: float,
    window: tuple[slice, slice],
) -> np.ndarray:
    """Mix the object's two tones by its texture, lit by the scene's light and darker along the rim:
    `[3, H, W]` float32."""
    u, v = _texture_frame(placed.texture_rotation, placed.period, placed.texture_offset, x, y)
    rows, columns = window
    noise = smooth_noise(layout.noise[1], _on_lattice(rows, pixel), _on_lattice(columns, pixel))
    draw_texture = TEXTURES[placed.texture]
    mix = draw_texture(u, v, pixel / placed.period, noise)
    first, second = _tones(placed)
    light = 1.0 + (1.6 * layout.light_strength / placed.diameter) * _towards_light(layout, x, y)
    light = light * (1.0 - 0.22 * np.clip(1.0 + distance / np.float32(0.06), 0.0, 1.0))
    return (first[:, None, None] + (second - first)[:, None, None] * mix) * light


def _on_lattice(part: slice, pixel: float) -> np.ndarray:
    """The centres of some pixels of one axis, in units of the noise's lattice."""
    return (np.arange(part.start, part.stop, dtype=np.float32) + 0.5) * np.float32(13.0 * pixel)


def _tones(placed: Placed) -> tuple[np.ndarray, np.ndarray]:
    """Two tones of the named colour, one lighter and one darker: sRGB `[3]` each."""
    hue, lightness, chroma = NAMED_COLOURS[placed.colour]
    hue = hue + placed.hue_shift
    low = lightness + placed.lightness - placed.tone_step / 2
    high = lightness + placed.lightness + placed.tone_step / 2
    return oklch_to_rgb(low, chroma * 0.9, hue), oklch_to_rgb(high, chroma * 0.9, hue)
