"""The embedded scenes: images drawn on the fly, deterministic by (seed, split, index), with ground
truth for everything that they show.

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
from vision_core.scenes.defaults import DEFAULT_SIZE, DEFAULT_SPLIT, SPLITS
from vision_core.scenes.language import Question, SceneObject, describe, question
from vision_core.scenes.layout import BACKDROP_DEPTH, CATEGORIES, Layout, Placed, draw_layout
from vision_core.scenes.shapes import EXTENT, SHAPES
from vision_core.scenes.textures import TEXTURES, smooth_noise, soft_inside

__all__ = ["CATEGORIES", "Question", "Scene", "SceneObject", "draw_scene"]

SMALLEST_SIDE = 32
SHADOW_SHIFT, SHADOW_BLUR, SHADOW_DARKNESS = 0.022, 0.05, 0.38


@dataclass
class Scene:
    """One picture and what is known about it.

    image: uint8 [3, S, S]. category: of the main object, the largest and nearest. masks: uint8 [S,
    S], 0 the backdrop, i + 1 where object i is visible.
    """

    image: Tensor
    category: int
    masks: Tensor
    layout: Layout
    name: tuple[int | str, ...]

    @cached_property
    def objects(self) -> list[SceneObject]:
        """The objects, the main one first; boxes (xyxy, pixels, end exclusive) and areas (pixels)
        are those of the visible parts."""
        return [self._object(number, placed) for number, placed in enumerate(self.layout.objects, start=1)]

    @cached_property
    def depth(self) -> Tensor:
        """Metres from the viewer, float32 [S, S]. An object is a tilted plate around its own depth,
        the backdrop a tilted wall behind all."""
        masks = self.masks.numpy()
        y, x = _pixel_grid(masks.shape[0])
        depth = np.broadcast_to(BACKDROP_DEPTH[1] - self.layout.backdrop_tilt * y, masks.shape).astype(
            np.float32
        )
        for number, placed in enumerate(self.layout.objects, start=1):
            plate = (
                placed.depth
                + placed.tilt[0] * (x - placed.centre[0])
                + placed.tilt[1] * (y - placed.centre[1])
            )
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
        box = (
            (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
            if len(rows)
            else (0, 0, 0, 0)
        )
        return SceneObject(
            CATEGORIES[placed.category], placed.colour, placed.texture, box, placed.depth, len(rows)
        )


def draw_scene(seed: int, index: int, size: int = DEFAULT_SIZE, split: str = DEFAULT_SPLIT) -> Scene:
    """Draw scene (seed, split, index) at size x size pixels; the same scene at every size.

    Raises UserError for a size below 32 or an unknown split.
    """
    if size < SMALLEST_SIDE:
        raise UserError(
            f"scenes: size {size} is too small to tell the shapes apart; use {SMALLEST_SIDE} or more"
        )
    if split not in SPLITS:
        raise UserError(f"scenes: unknown split {split!r}; use {' or '.join(SPLITS)}")
    layout = draw_layout(seed, index, split)
    picture, masks = _draw_backdrop(layout, size), np.zeros((size, size), np.uint8)
    order = sorted(range(len(layout.objects)), key=lambda number: -layout.objects[number].depth)
    for number in order:
        _draw_object(picture, masks, number + 1, layout)
    image = torch.from_numpy((np.clip(picture, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8))
    return Scene(image, layout.objects[0].category, torch.from_numpy(masks), layout, (seed, split, index))


def _pixel_grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres in sides: y [S, 1], x [1, S]."""
    at = (np.arange(size, dtype=np.float32) + 0.5) / size
    return at[:, None], at[None, :]


def _draw_backdrop(layout: Layout, size: int) -> np.ndarray:
    """A soft gradient between two muted tones with cloudy variations of two scales, under the
    habitat's pattern: float32 [3, S, S]."""
    y, x = _pixel_grid(size)
    at = y[:, 0]
    clouds = 0.7 * smooth_noise(layout.noise[0, :5, :5], at * 4, at * 4) + 0.45 * smooth_noise(
        layout.noise[1], at * 13, at * 13
    )
    along = np.cos(layout.backdrop_direction) * (x - 0.5) + np.sin(layout.backdrop_direction) * (y - 0.5)
    share = np.clip(0.5 + 0.9 * along + 0.3 * clouds, 0.0, 1.0).astype(np.float32)
    start, end = (oklch_to_rgb(*tone) for tone in layout.backdrop_tones)
    light = (
        1.0
        + layout.backdrop_contrast * clouds
        + layout.light_strength * _towards_light(layout, x - 0.5, y - 0.5)
    )
    light = light * (1.0 + layout.habitat.contrast * (_habitat_pattern(layout, x, y) - 0.5))
    return (start[:, None, None] + (end - start)[:, None, None] * share) * light.astype(np.float32)


def _habitat_pattern(layout: Layout, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Mix of the two tones of the backdrop's pattern in [0, 1]: float32 [S, S]."""
    habitat, at = layout.habitat, y[:, 0]
    u, v = _texture_frame(habitat.rotation, habitat.period, habitat.offset, x - 0.5, y - 0.5)
    return TEXTURES[habitat.texture](
        u, v, 1 / (len(at) * habitat.period), smooth_noise(layout.noise[0], at * 13, at * 13)
    )


def _texture_frame(
    rotation: float, period: float, offset: tuple[float, float], x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates u, v in the frame of a pattern, in periods."""
    cos, sin = np.float32(np.cos(rotation) / period), np.float32(np.sin(rotation) / period)
    return cos * x + sin * y + np.float32(offset[0]), cos * y - sin * x + np.float32(offset[1])


def _towards_light(layout: Layout, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.float32(np.cos(layout.light_direction)) * x + np.float32(np.sin(layout.light_direction)) * y


def _draw_object(picture: np.ndarray, masks: np.ndarray, number: int, layout: Layout) -> None:
    """Draw one object and its shadow over what is there, in the window that holds both."""
    placed, size = layout.objects[number - 1], masks.shape[0]
    radius, pixel = placed.diameter / 2, 1.0 / size
    rows, columns = (
        _window(centre, EXTENT * radius + 2 * SHADOW_SHIFT, size)
        for centre in (placed.centre[1], placed.centre[0])
    )
    y, x = _pixel_grid(size)
    y, x = y[rows] - np.float32(placed.centre[1]), x[:, columns] - np.float32(placed.centre[0])
    shift_x, shift_y = (np.float32(-SHADOW_SHIFT * turn(layout.light_direction)) for turn in (np.cos, np.sin))
    distance = radius * _distance(
        placed, np.stack([x + 0 * y, x - shift_x + 0 * y]), np.stack([y + 0 * x, y - shift_y + 0 * x])
    )
    inside = soft_inside(distance[0], pixel)
    shadow = SHADOW_DARKNESS * soft_inside(distance[1], SHADOW_BLUR)
    window = picture[:, rows, columns]
    window *= 1.0 - shadow * (1.0 - inside)
    window += inside * (_surface(placed, layout, x, y, distance[0], pixel, (rows, columns)) - window)
    masks[rows, columns][inside >= 0.5] = number


def _window(centre: float, reach: float, size: int) -> slice:
    return slice(max(0, int((centre - reach) * size)), min(size, int((centre + reach) * size) + 1))


def _distance(placed: Placed, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance to the object's edge in radii, x and y measured from its centre."""
    scale = np.float32(2.0 / placed.diameter)
    cos, sin = (np.float32(np.cos(placed.rotation)) * scale, np.float32(np.sin(placed.rotation)) * scale)
    return SHAPES[CATEGORIES[placed.category]](
        np.float32(placed.flip) * (cos * x + sin * y), cos * y - sin * x, *placed.variations
    )


def _surface(
    placed: Placed,
    layout: Layout,
    x: np.ndarray,
    y: np.ndarray,
    distance: np.ndarray,
    pixel: float,
    window: tuple[slice, slice],
) -> np.ndarray:
    """The object's two tones mixed by its texture, lit from the scene's light, darker along the
    rim: float32 [3, h, w]."""
    u, v = _texture_frame(placed.texture_rotation, placed.period, placed.texture_offset, x, y)
    lattice = layout.noise[1]
    at_y, at_x = (
        (np.arange(part.start, part.stop, dtype=np.float32) + 0.5) * np.float32(13.0 * pixel)
        for part in window
    )
    mix = TEXTURES[placed.texture](u, v, pixel / placed.period, smooth_noise(lattice, at_y, at_x))
    first, second = _tones(placed)
    light = 1.0 + (1.6 * layout.light_strength / placed.diameter) * _towards_light(layout, x, y)
    light = light * (1.0 - 0.22 * np.clip(1.0 + distance / np.float32(0.06), 0.0, 1.0))
    return (first[:, None, None] + (second - first)[:, None, None] * mix) * light


def _tones(placed: Placed) -> tuple[np.ndarray, np.ndarray]:
    """Two tones of the named colour, one lighter and one darker: sRGB [3] each."""
    hue, lightness, chroma = NAMED_COLOURS[placed.colour]
    low, high = (
        lightness + placed.lightness - placed.tone_step / 2,
        lightness + placed.lightness + placed.tone_step / 2,
    )
    return oklch_to_rgb(low, chroma * 0.9, hue + placed.hue_shift), oklch_to_rgb(
        high, chroma * 0.9, hue + placed.hue_shift
    )
