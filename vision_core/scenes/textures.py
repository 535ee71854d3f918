"""The surfaces of the drawn scenes: fifteen patterns that differ in structure, and smooth noise.

A pattern takes u, v (coordinates in an object's frame, measured in periods), `pixel` (the size of a
pixel in periods, for soft edges) and `noise` (smooth noise of about unit size on the same points),
and gives an array in [0, 1]: the mix of the object's two tones.
"""

import numpy as np

Array = np.ndarray


def soft_inside(distance: Array, pixel: float) -> Array:
    """The share of a pixel that lies inside an edge: 1 at a distance (in the unit of `pixel`) well
    below 0, 0.5 on the edge, 0 well above it."""
    return np.clip(0.5 - distance / pixel, 0.0, 1.0)


def _off_centre(u: Array) -> Array:
    """The distance from the middle of the cell: 0 in the middle, 0.5 at the borders."""
    return np.abs(u - np.floor(u) - 0.5)


def striped(u: Array, v: Array, pixel: float, noise: Array) -> Array:
    return soft_inside(_off_centre(u) - 0.25, pixel)


def wavy(u: Array, v: Array, pixel: float, noise: Array) -> Array:
    return soft_inside(_off_centre(u + 0.35 * np.sin(4.0 * v)) - 0.25, pixel)


def zigzag(u: Array, v: Array, pixel: float, noise: Array) -> Array:
    return soft_inside(_off_centre(u + 1.6 * _off_centre(v * 0.7)) - 0.25, pixel)


def marbled(u: Array, v: Array, pixel: float, noise: Array) -> Array:
    return soft_inside(_off_centre(0.6 * u + 1.1 * noise) - 0.25, pixel)


def checked(u: Array, v: Array, pixel: float, noise: Array) -> Array:
    across = _off_centre(0.7 * u) - 0.25
    down = _off_centre(0.7 * v) - 0.25
    return soft_inside(np.maximum(np.minimum(across, down), -np.maximum(across, down)), pixel)


def tartan(u: Array, v: Array, pixel: float, noise: Array) -> Array:
    across = soft_inside(_off_centre(0.7 * u) - 0.22, pixel)
    down = soft_inside(_off_centre(0.7 * v) - 0.22, pixel)
    return 0.5 * (across + down)


def grid(u: Array, v: Array, pixel: float, noise: Array) -> Array:
    return soft_inside(0.36 - np.maximum(_off_centre(0.8 * u), _off_centre(0.8 * v)), pixel)


def bricked(u: Array, v: Array, pixel: float, noise: Array) -> Array:
    across = (0.5 - _off_centre(0.5 * u + 0.5 * np.floor(v))) * 2.0
    return soft_inside(np.minimum(across, 0.5 - _off_centre(v)) - 0.13, pixel)


def dotted(u: Array, v: Array, pixel: float, noise: Array) -> Array:
    across = _off_centre(u + 0.5 * np.floor(v))
    down = _off_centre(v)
    return soft_inside(np.sqrt(across * across + down * down) - 0.31, pixel)


def scaly(u: Array, v: Array, pixel: float, noise: Array) -> Array:
    """Overlapping rows of roof tiles, each tile darker towards its rounded lower rim."""
    row = np.floor(v)
    across = _off_centre(0.9 * u + 0.5 * row)
    down = v - row
    upper = np.sqrt(across * across + down * down)
    lower_across = 0.5 - across
    lower = np.sqrt(lower_across * lower_across + (1.0 + down) ** 2) - 0.5
    return np.clip(np.where(upper < 0.62, upper * 1.5, lower - 0.35), 0.0, 1.0)


def triangular(u: Array, v: Array, pixel: float, noise: Array) -> Array:
    first = 0.8 * u
    second = 0.4 * u + 0.7 * v
    product = np.sin(np.pi * first) * np.sin(np.pi * second) * np.sin(np.pi * (second - first))
    return soft_inside(product, 1.5 * pixel)


def honeycombed(u: Array, v: Array, pixel: float, noise: Array) -> Array:
    """Hexagonal cells: the largest distance to the six sides, in the nearer of two interleaved
    rectangular lattices."""
    across = 0.85 * u
    down = 0.85 * v / 1.732
    first = _hexagon(across - np.floor(across) - 0.5, (down - np.floor(down) - 0.5) * 1.732)
    across = across + 0.5
    down = down + 0.5
    second = _hexagon(across - np.floor(across) - 0.5, (down - np.floor(down) - 0.5) * 1.732)
    return soft_inside(0.4 - np.minimum(first, second), pixel)


def _hexagon(x: Array, y: Array) -> Array:
    x = np.abs(x)
    return np.maximum(x, 0.5 * x + 0.866 * np.abs(y))


def ringed(u: Array, v: Array, pixel: float, noise: Array) -> Array:
    return soft_inside(_off_centre(np.sqrt(u * u + v * v)) - 0.25, pixel)


def radiating(u: Array, v: Array, pixel: float, noise: Array) -> Array:
    radius = np.sqrt(u * u + v * v) + 0.2
    return np.clip(0.5 - np.sin(12.0 * np.arctan2(v, u)) * radius / (12.0 * pixel), 0.0, 1.0)


def patched(u: Array, v: Array, pixel: float, noise: Array) -> Array:
    return soft_inside(noise, 3.0 * pixel)


TEXTURES = {
    texture.__name__: texture
    for texture in (
        striped, wavy, zigzag, marbled, checked, tartan, grid, bricked,
        dotted, scaly, triangular, honeycombed, ringed, radiating, patched,
    )
}  # fmt: skip


def smooth_noise(lattice: Array, y: Array, x: Array) -> Array:
    """Interpolate random values on a lattice smoothly at the points of a pixel grid (value noise).
    Rows and columns are separable, so this takes two small products.

    lattice is `[G, G]`; y `[H]` and x `[W]` are in lattice units, 0 to G - 1. Returns `[H, W]`.
    """
    return _interpolation(y, lattice.shape[0]) @ lattice @ _interpolation(x, lattice.shape[1]).T


def _interpolation(at: Array, size: int) -> Array:
    """The weights of the lattice points for each position `[N]`, eased by 3t^2 - 2t^3: `[N, G]`
    with G = `size`."""
    nearness = np.clip(1.0 - np.abs(at[:, None] - np.arange(size, dtype=at.dtype)), 0.0, 1.0)
    return nearness * nearness * (3.0 - 2.0 * nearness)
