"""What holds for every test: no network, and pictures without a display. Set before any test imports the libraries that read it."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
