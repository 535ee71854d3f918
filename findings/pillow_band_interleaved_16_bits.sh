#!/usr/bin/env bash
# Pillow 13.0.0: band-interleaved GeoTIFFs of three 16-bit bands open without a word, and one of their four kinds is right.
#
# One would guess: whether rasterio compresses the bands, and whether it calls them a colour picture, changes nothing about the
#   pixels that Image.open gives. Or the file is refused, as Pillow refuses most multi-band files of 16 bits.
# What happens, of the same three bands: compressed and called RGB, the picture is right (8 bits of each value). Not compressed
#   and called RGB, it is a picture of the right size and mode, and nearly all of its values are wrong. Compressed and not called
#   RGB (rasterio's default for uint16), it is a grey picture: the first band alone. The fourth kind raises an error.
# Whom it hurts: those who train on satellite pictures with a loader that opens files by Pillow (torchvision's ImageFolder, the
#   Image feature of datasets): nothing fails, and the model learns noise, or one band of three.
# Way round: read TIFF by tifffile or rasterio wherever PlanarConfiguration is 2.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q pillow==13.0.0 rasterio==1.4.4 tifffile==2026.3.3 imagecodecs==2026.3.6 numpy
"$work/venv/bin/python" - "$work" <<'PY'
import sys
import warnings

import numpy as np
import rasterio
import tifffile
from PIL import Image

warnings.simplefilter("ignore")  # of rasterio: the files have no coordinates
rows, columns = np.mgrid[0:64, 0:96]
eight_bits = np.stack([rows * 3 % 256, columns * 2 % 256, (rows + columns) % 256]).astype(np.uint8)
bands = eight_bits.astype(np.uint16) * 257
seen = []
for compress in ("LZW", "NONE"):
    for photometric in ("RGB", "MINISBLACK"):
        path = f"{sys.argv[1]}/{compress}_{photometric}.tif"
        shape = {"height": 64, "width": 96, "count": 3, "dtype": "uint16"}
        how = {"interleave": "band", "compress": compress, "photometric": photometric}
        with rasterio.open(path, "w", driver="GTiff", **shape, **how) as file:
            file.write(bands)
        assert np.array_equal(tifffile.imread(path), bands)  # the file is what was written
        try:
            picture = Image.open(path)
            values = np.asarray(picture)
        except ValueError as error:
            seen.append(f"{compress} {photometric}: ValueError: {error}")
            continue
        if picture.mode != "RGB":
            seen.append(f"{compress} {photometric}: mode {picture.mode}, band 1 alone: {np.array_equal(values, bands[0])}")
            continue
        wrong = float((values != eight_bits.transpose(1, 2, 0)).mean())
        seen.append(f"{compress} {photometric}: mode RGB, {100 * wrong:.0f} % of the values are wrong")
print("\n".join(seen))
is_so = "0 %" in seen[0] and " 0 %" not in seen[2] and "band 1 alone: True" in seen[1]
sys.exit(0 if is_so else "Pillow reads or refuses these files now: this finding is over")
PY
# Seen (2026-11-28):
# LZW RGB: mode RGB, 0 % of the values are wrong
# LZW MINISBLACK: mode I;16, band 1 alone: True
# NONE RGB: mode RGB, 98 % of the values are wrong
# NONE MINISBLACK: ValueError: unknown raw mode for given image mode
