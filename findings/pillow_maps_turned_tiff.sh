#!/usr/bin/env bash
# Pillow 13.0.0: an uncompressed grey TIFF with an EXIF orientation of a quarter turn is garbled when it is opened by name.
#
# One would guess: Image.open(path) and Image.open(BytesIO of the same bytes) give the same pixels.
# What happens: Pillow brings a TIFF upright while it loads, and for orientations 5 to 8 it exchanges the sides already when it
#   reads the header. A file that is opened by name and is not compressed is mapped into memory with the exchanged sides, so
#   that its rows are cut at the wrong places, and is turned afterwards. From a BytesIO the picture is right. Neither warns.
# Whom it hurts: those who train on scans, microscope and survey pictures (modes L and I;16) that a camera or a converter
#   wrote as plain TIFF with an orientation: the file opens without a word, and shows noise.
# Way round: read the bytes first, and open them from memory.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q pillow==13.0.0 numpy
"$work/venv/bin/python" - "$work/turned.tif" <<'PY'
import io
import pathlib
import sys

import numpy as np
from PIL import Image

orientation = Image.Exif()
orientation[0x112] = 6
rows = np.arange(6, dtype=np.uint8)[:, None] * np.ones((1, 4), dtype=np.uint8)  # each row has its number
Image.fromarray(rows).save(sys.argv[1], exif=orientation)
by_name = np.asarray(Image.open(sys.argv[1]))
from_memory = np.asarray(Image.open(io.BytesIO(pathlib.Path(sys.argv[1]).read_bytes())))
print("by name:", by_name.shape, by_name.tolist())
print("from memory:", from_memory.shape, from_memory.tolist())
same = np.array_equal(by_name, from_memory)
sys.exit("both ways give the same pixels: this finding is over" if same else 0)
PY
# Seen (2026-11-28), of a picture whose six rows hold their numbers:
# by name: (6, 4) [[4, 3, 1, 0], [4, 3, 1, 0], [5, 3, 2, 0], [5, 3, 2, 0], [5, 4, 2, 1], [5, 4, 2, 1]]
# from memory: (4, 6) [[5, 4, 3, 2, 1, 0], [5, 4, 3, 2, 1, 0], [5, 4, 3, 2, 1, 0], [5, 4, 3, 2, 1, 0]]
