"""The shapes of the drawn scenes: ten categories as signed distances, so that edges are smooth
at any resolution.

A shape takes x, y (arrays in the object's own frame: y downwards, the shape within radius `EXTENT`)
and two variations in [0, 1], and gives a signed distance, negative inside. Distances are exact near
straight edges and close elsewhere, which is what anti-aliasing needs. All shapes have an area near
2, so that the share of the picture that an object covers does not give its category away.
"""

import numpy as np

Array = np.ndarray

EXTENT = 1.35


def _disc(x: Array, y: Array, radius: float) -> Array:
    return np.sqrt(x * x + y * y) - radius


def _box(x: Array, y: Array, half_width: float, half_height: float) -> Array:
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def _half_plane(x: Array, y: Array, start: tuple[float, float], end: tuple[float, float]) -> Array:
    """The distance to the line through two points, negative on the right of start -> end as seen on
    the screen (y downwards)."""
    step_x = end[0] - start[0]
    step_y = end[1] - start[1]
    length = (step_x**2 + step_y**2) ** 0.5
    normal_x = step_y / length
    normal_y = -step_x / length
    return normal_x * x + normal_y * y - (normal_x * start[0] + normal_y * start[1])


def _convex(x: Array, y: Array, *corners: tuple[float, float]) -> Array:
    """A convex polygon whose corners run clockwise on the screen."""
    inside = _half_plane(x, y, corners[-1], corners[0])
    for start, end in zip(corners, corners[1:], strict=False):
        inside = np.maximum(inside, _half_plane(x, y, start, end))
    return inside


def star(x: Array, y: Array, a: float, b: float) -> Array:
    """A star with five or six tips. Every point is folded onto one half of one tip, where the edge
    is a single line."""
    tips = 5 if a < 0.5 else 6
    tip = 1.2
    notch = 0.56 + 0.1 * b
    radius = np.sqrt(x * x + y * y)
    sector = 2 * np.pi / tips
    angle = np.arctan2(x, -y)
    angle = np.abs(angle - sector * np.round(angle / sector))
    corner = (notch * np.cos(sector / 2), notch * np.sin(sector / 2))
    return _half_plane(radius * np.cos(angle), radius * np.sin(angle), (tip, 0.0), corner)


def ring(x: Array, y: Array, a: float, b: float) -> Array:
    stretch = 1.0 + 0.2 * b
    return np.abs(_disc(x, y * stretch, 0.88)) - (0.2 + 0.04 * a)


def cross(x: Array, y: Array, a: float, b: float) -> Array:
    arm = 1.0 + 0.08 * b
    width = 0.28 + 0.08 * a
    return np.minimum(_box(x, y, arm, width), _box(x, y, width, arm))


def moon(x: Array, y: Array, a: float, b: float) -> Array:
    return np.maximum(_disc(x - 0.25, y, 1.1), -_disc(x - 0.87 - 0.1 * a, y - 0.1 * b, 0.86))


def arrow(x: Array, y: Array, a: float, b: float) -> Array:
    neck = -0.05 + 0.2 * a
    width = 0.3 + 0.06 * b
    shaft = _box(x - (neck - 1.1) / 2, y, (neck + 1.1) / 2, width)
    return np.minimum(shaft, _convex(x, y, (neck, -0.92), (1.15, 0.0), (neck, 0.92)))


def heart(x: Array, y: Array, a: float, b: float) -> Array:
    """A square on its corner with a disc on each of the two upper edges."""
    x = x * (0.9 + 0.15 * a)
    y = y - 0.2
    half = 0.5 + 0.04 * b
    right = (x - y) * 0.7071
    left = (-x - y) * 0.7071
    lobes = np.minimum(_disc(right - half, left, half), _disc(right, left - half, half))
    return np.minimum(_box(right, left, half, half), lobes)


def gear(x: Array, y: Array, a: float, b: float) -> Array:
    teeth = 7 + int(3 * a)
    radius = np.sqrt(x * x + y * y)
    tooth = np.clip(2.0 * np.cos(teeth * np.arctan2(y, x)), -1.0, 1.0)
    return np.maximum(radius - 0.85 - 0.14 * tooth, 0.26 + 0.08 * b - radius)


def fish(x: Array, y: Array, a: float, b: float) -> Array:
    """A lens for the body, a triangle for the tail, a fin and the hole of an eye."""
    height = 0.62 - 0.1 * a
    curve = (0.9 - height**2) / (2 * height)
    body = np.maximum(_disc(x - 0.25, y - curve, height + curve), _disc(x - 0.25, y + curve, height + curve))
    tail = _convex(x, y, (-1.1, -0.65 - 0.1 * b), (-0.2, 0.0), (-1.1, 0.65 + 0.1 * b))
    tail = np.maximum(tail, -_convex(x, y, (-1.2, -0.5), (-0.85, 0.0), (-1.2, 0.5)))
    fin = _convex(x, y, (-0.1, -0.88), (0.45, -0.4), (-0.1, -0.4))
    outline = np.minimum(np.minimum(body, tail), fin)
    return np.maximum(outline, -_disc(x - 0.8, y + 0.12, 0.1))


def house(x: Array, y: Array, a: float, b: float) -> Array:
    body = _box(x, y - 0.4, 0.68, 0.5)
    roof = _convex(x, y, (-0.95, -0.08), (0.0, -0.85 - 0.2 * a), (0.95, -0.08))
    chimney = _box(x - 0.5, y + 0.6, 0.13, 0.35)
    door = _box(x - 0.5 * (b - 0.5), y - 0.6, 0.17, 0.32)
    return np.maximum(np.minimum(np.minimum(body, roof), chimney), -door)


def cup(x: Array, y: Array, a: float, b: float) -> Array:
    foot = 0.4 + 0.15 * a
    body = _convex(x, y, (-0.98, -0.78), (0.48, -0.78), (foot - 0.25, 0.85), (-foot - 0.25, 0.85))
    handle = np.abs(_disc(x - 0.45, y + 0.12, 0.42 + 0.06 * b)) - 0.13
    return np.minimum(body, np.maximum(handle, 0.2 - x))


SHAPES = {shape.__name__: shape for shape in (star, ring, cross, moon, arrow, heart, gear, fish, house, cup)}
