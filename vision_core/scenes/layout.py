"""Choose the objects of a drawn scene and their places: numbers only, in units of the picture's side,
so that a scene is the same at any resolution.

The constants decide how hard the scenes are. Self-supervised learning finds what two random crops
of a scene share, so the evidence of the category is everywhere: the main object comes with others
of its kind, whose surfaces come from the kind's own three textures, before a backdrop whose pattern
is mostly the kind's habitat, as fish are mostly seen in water. Colours, poses and sizes tell
nothing. Every texture belongs to two kinds, and one backdrop in eleven is another kind's, so that a
single surface does not settle the category.
"""

from dataclasses import dataclass

import numpy as np

from vision_core.randomness import numpy_generator
from vision_core.scenes.colours import COLOURS
from vision_core.scenes.shapes import SHAPES
from vision_core.scenes.textures import TEXTURES

CATEGORIES: tuple[str, ...] = tuple(SHAPES)

# Each kind's own surfaces; each texture is in two rows, and two rows share one texture at most.
TEXTURES_OF_KIND: dict[str, tuple[str, str, str]] = {
    "star": ("striped", "dotted", "bricked"),
    "ring": ("striped", "checked", "marbled"),
    "cross": ("checked", "scaly", "wavy"),
    "moon": ("scaly", "grid", "radiating"),
    "arrow": ("grid", "dotted", "patched"),
    "heart": ("bricked", "honeycombed", "zigzag"),
    "gear": ("marbled", "triangular", "ringed"),
    "fish": ("wavy", "honeycombed", "tartan"),
    "house": ("radiating", "zigzag", "triangular"),
    "cup": ("patched", "ringed", "tartan"),
}
# Each kind's surroundings: the pattern of the backdrop, one of the kind's own and nobody else's
# backdrop.
HABITAT_OF_KIND: dict[str, str] = {
    "star": "striped",
    "ring": "checked",
    "cross": "wavy",
    "moon": "scaly",
    "arrow": "dotted",
    "heart": "bricked",
    "gear": "triangular",
    "fish": "honeycombed",
    "house": "zigzag",
    "cup": "ringed",
}
HABITAT_SHARE = 0.9  # how often a backdrop is the main kind's habitat; otherwise any kind's
HABITAT_PERIOD = (0.13, 0.17)
HABITAT_CONTRAST = (0.35, 0.5)  # share by which the pattern darkens or lightens the backdrop
OWN_TEXTURE_SHARE = 1.0  # how often a surface comes from the kind's own three; otherwise from all
MAX_COMPANIONS = 3  # others of the main object's kind, 0 to this many, equally often
MAX_DISTRACTORS = 1  # objects of other kinds
MAIN_DIAMETER = (0.5, 0.68)
OTHER_DIAMETER = (0.26, 0.38)
MAIN_CENTRE = (0.36, 0.64)
# how far two objects' discs may reach into each other, in sides, before another place is tried
OVERLAP = 0.10
PLACES_TRIED = 12
ROTATION = 30.0  # degrees to either side
TEXTURE_ROTATION = 25.0  # degrees to either side
TEXTURE_PERIOD = (0.13, 0.16)
TONE_STEP = (0.4, 0.55)  # difference in lightness of a surface's two tones
BACKGROUND_CHROMA = (0.015, 0.06)
BACKGROUND_LIGHTNESS = (0.55, 0.82)
BACKGROUND_CONTRAST = (0.02, 0.07)

# Depth in metres: an object of a real size near REAL_DIAMETER looks smaller the farther it is.
# A tilted backdrop is behind all objects.
REAL_DIAMETER = (1.5, 1.9)
DEPTH_GAP = 0.4
BACKDROP_DEPTH = (9.0, 10.5)


@dataclass(frozen=True)
class Placed:
    """One object: its place, size and looks. Lengths are in sides of the picture, angles in
    radians, the depth in metres."""

    category: int
    colour: str
    texture: str
    centre: tuple[float, float]
    diameter: float
    depth: float
    rotation: float
    flip: float
    variations: tuple[float, float]
    period: float
    texture_rotation: float
    texture_offset: tuple[float, float]
    lightness: float
    tone_step: float
    hue_shift: float
    tilt: tuple[float, float]


@dataclass(frozen=True)
class Habitat:
    """The pattern of the backdrop. Lengths are in sides of the picture, angles in radians; the sign
    of `contrast` says which tone is lighter."""

    texture: str
    period: float
    rotation: float
    offset: tuple[float, float]
    contrast: float


@dataclass(frozen=True)
class Layout:
    """A scene as numbers. `objects[0]` is the main one, the largest and the nearest. The tones of
    the backdrop are OKLCH (lightness, chroma, hue)."""

    objects: tuple[Placed, ...]
    backdrop_tones: tuple[tuple[float, float, float], tuple[float, float, float]]
    backdrop_direction: float
    backdrop_contrast: float
    backdrop_tilt: float
    habitat: Habitat
    light_direction: float
    light_strength: float
    noise: np.ndarray


def category_of(seed: int, split: str, index: int) -> int:
    """The category of a scene, without drawing it: every ten consecutive indices hold each category
    once, in a random order."""
    block, place = divmod(index, len(CATEGORIES))
    order = numpy_generator(seed, "scene_categories", split, block).permutation(len(CATEGORIES))
    return int(order[place])


def draw_layout(seed: int, index: int, split: str) -> Layout:
    """Draw the numbers of scene (seed, split, index)."""
    rng = numpy_generator(seed, "scene", split, index)
    main_kind = category_of(seed, split, index)
    kinds = _draw_kinds(rng, main_kind)
    diameters = [rng.uniform(*MAIN_DIAMETER), *rng.uniform(*OTHER_DIAMETER, len(kinds) - 1)]
    centres = _draw_centres(rng, diameters)
    depths = _draw_depths(rng, diameters)
    colours = rng.permutation(len(COLOURS))
    objects = []
    for kind, colour, centre, diameter, depth in zip(
        kinds, colours, centres, diameters, depths, strict=False
    ):
        objects.append(_draw_object(rng, kind, colour, centre, diameter, depth))
    return Layout(
        objects=tuple(objects),
        backdrop_tones=_draw_backdrop_tones(rng),
        backdrop_direction=rng.uniform(0.0, 2 * np.pi),
        backdrop_contrast=rng.uniform(*BACKGROUND_CONTRAST),
        backdrop_tilt=rng.uniform(0.0, 1.5),
        habitat=_draw_habitat(rng, main_kind),
        light_direction=rng.uniform(-0.8, 0.8) - np.pi / 2,
        light_strength=rng.uniform(0.08, 0.22),
        noise=rng.uniform(-1.0, 1.0, (2, 14, 14)).astype(np.float32),
    )


def _draw_kinds(rng: np.random.Generator, main_kind: int) -> list[int]:
    """Draw the categories of all objects: the main one, its companions, and distractors of other
    kinds."""
    kinds = [main_kind] * (1 + rng.integers(MAX_COMPANIONS + 1))
    for step in rng.integers(1, len(CATEGORIES), rng.integers(MAX_DISTRACTORS + 1)):
        kinds.append((main_kind + int(step)) % len(CATEGORIES))
    return kinds


def _draw_backdrop_tones(
    rng: np.random.Generator,
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Draw two muted tones as (lightness, chroma, hue)."""
    hue = rng.uniform(0.0, 360.0)
    lightness = rng.uniform(*BACKGROUND_LIGHTNESS)
    first = (lightness, rng.uniform(*BACKGROUND_CHROMA), hue)
    second = (
        lightness + rng.uniform(-0.1, 0.1),
        rng.uniform(*BACKGROUND_CHROMA),
        hue + rng.uniform(-120.0, 120.0),
    )
    return first, second


def _draw_habitat(rng: np.random.Generator, main_kind: int) -> Habitat:
    kind = main_kind if rng.random() < HABITAT_SHARE else int(rng.integers(len(CATEGORIES)))
    return Habitat(
        texture=HABITAT_OF_KIND[CATEGORIES[kind]],
        period=rng.uniform(*HABITAT_PERIOD),
        rotation=float(np.deg2rad(TEXTURE_ROTATION) * rng.uniform(-1.0, 1.0)),
        offset=(rng.random(), rng.random()),
        contrast=rng.uniform(*HABITAT_CONTRAST) * (1 if rng.random() < 0.5 else -1),
    )


def _draw_centres(rng: np.random.Generator, diameters: list[float]) -> list[tuple[float, float]]:
    """Place the main object near the middle, and each other object at the first tried place that is
    clear of those before, or else at the clearest."""
    centres = [tuple(rng.uniform(*MAIN_CENTRE, 2))]
    for place, diameter in enumerate(diameters[1:], start=1):
        tried = rng.uniform(0.4 * diameter, 1.0 - 0.4 * diameter, (PLACES_TRIED, 2))
        apart = np.hypot(*np.moveaxis(tried[:, None] - np.array(centres), -1, 0))
        clearance = (apart - (np.array(diameters[:place]) + diameter) / 2).min(axis=1)
        centres.append(tuple(tried[np.argmax(np.minimum(clearance, -OVERLAP))]))
    return [(float(x), float(y)) for x, y in centres]


def _draw_depths(rng: np.random.Generator, diameters: list[float]) -> list[float]:
    """Draw depths that fit the apparent sizes; the main object is the nearest by at least
    DEPTH_GAP."""
    depths = rng.uniform(*REAL_DIAMETER, len(diameters)) / np.array(diameters)
    depths[1:] = np.maximum(depths[1:], depths[0] + DEPTH_GAP)
    return [float(depth) for depth in depths]


def _draw_object(
    rng: np.random.Generator,
    kind: int,
    colour: int,
    centre: tuple[float, float],
    diameter: float,
    depth: float,
) -> Placed:
    own = rng.random() < OWN_TEXTURE_SHARE
    choices = TEXTURES_OF_KIND[CATEGORIES[kind]] if own else tuple(TEXTURES)
    texture = choices[rng.integers(len(choices))]
    uniform = rng.random(12)
    return Placed(
        category=kind,
        colour=COLOURS[colour],
        texture=texture,
        centre=centre,
        diameter=float(diameter),
        depth=depth,
        rotation=float(np.deg2rad(ROTATION) * (2 * uniform[0] - 1)),
        flip=1.0 if uniform[1] < 0.5 else -1.0,
        variations=(float(uniform[2]), float(uniform[3])),
        period=float(_between(TEXTURE_PERIOD, uniform[4])),
        texture_rotation=float(np.deg2rad(TEXTURE_ROTATION) * (2 * uniform[5] - 1)),
        texture_offset=(float(uniform[6]), float(uniform[7])),
        lightness=float(0.14 * (uniform[8] - 0.5)),
        tone_step=float(_between(TONE_STEP, uniform[9]) * (1 if rng.random() < 0.5 else -1)),
        hue_shift=float(14.0 * (uniform[10] - 0.5)),
        tilt=(float(0.6 * (uniform[11] - 0.5)), float(0.6 * (rng.random() - 0.5))),
    )


def _between(limits: tuple[float, float], share: float) -> float:
    """The number at a share of the way from the lower limit to the upper one."""
    low, high = limits
    return low + share * (high - low)
