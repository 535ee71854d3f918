"""The defaults of `scenes` as a source text, for images and for conversations alike. Imports nothing
heavy.

`scenes` alone means 20,000 training scenes of 64 x 64 pixels, drawn with seed 0; with
`split=held_out` it means 2,000 held-out scenes.
"""

SCENE_SPLITS = ("train", "held_out")
DEFAULT_SIZE = 64
DEFAULT_SEED = 0
DEFAULT_SPLIT = "train"
DEFAULT_COUNTS = {"train": 20_000, "held_out": 2_000}
