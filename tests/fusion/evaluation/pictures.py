"""Random pictures for the tests of benchmarks and of lmms-eval."""

import io

import numpy as np
from PIL import Image


def picture(seed, size=(48, 40), mode="RGB"):
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    ).convert(mode)


def png(seed=0, size=(48, 40)):
    stream = io.BytesIO()
    picture(seed, size).save(stream, "PNG")
    return stream.getvalue()
