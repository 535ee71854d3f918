#!/usr/bin/env bash
# pydicom 3.0.2 and tifffile 2026.3.3: some DICOM files begin with the first bytes of a TIFF file.
#
# One would guess: the first four bytes tell TIFF (II*\0, MM\0*) from DICOM, and a reader of TIFF refuses what is none.
# What happens: DICOM leaves the first 128 bytes of a file to its writer (PS3.10, section 7.1), and several of the CT and MR files
#   that pydicom ships as examples have a TIFF header there. tifffile opens such a file without an error, finds no page in
#   it, and gives an array without a value. The picture is whole, and pydicom reads it.
# Whom it hurts: those who choose a decoder by a file's first bytes, as data loaders for files without an ending do, which hospital
#   archives are full of: scans become empty arrays, or "not an image", and nobody sees why.
# Way round: look for DICM at byte 128 before anything else.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q pydicom==3.0.2 tifffile==2026.3.3 numpy
"$work/venv/bin/python" - <<'PY'
import logging
import pathlib
import sys

import pydicom
import tifffile
from pydicom.data import get_testdata_file

logging.disable()  # tifffile's notes on what it did not find
is_so = True
for name in ("CT_small.dcm", "MR_small.dcm", "examples_rgb_color.dcm"):
    path = get_testdata_file(name, download=False)
    data = pathlib.Path(path).read_bytes()
    as_tiff, as_dicom = tifffile.imread(path), pydicom.dcmread(path).pixel_array
    print(name, data[:4], data[128:132], "tifffile:", as_tiff.shape, "pydicom:", as_dicom.shape)
    is_so = is_so and data[:4] in (b"II*\0", b"MM\0*") and data[128:132] == b"DICM" and as_tiff.size == 0
sys.exit(0 if is_so else "these files are told apart now: this finding is over")
PY
# Seen (2026-11-28):
# CT_small.dcm b'II*\x00' b'DICM' tifffile: (0,) pydicom: (128, 128)
# MR_small.dcm b'II*\x00' b'DICM' tifffile: (0,) pydicom: (64, 64)
# examples_rgb_color.dcm b'II*\x00' b'DICM' tifffile: (0,) pydicom: (240, 320, 3)
