"""The packages that only some formats need, and the extras that bring them."""

from importlib.util import find_spec
from typing import NamedTuple


class Package(NamedTuple):
    """A package by the name that is installed and the one that is imported.

    needed_for: the format, for people. extra: of `pyproject.toml`.
    """

    name: str
    module: str
    needed_for: str
    extra: str

    @property
    def is_installed(self) -> bool:
        return find_spec(self.module) is not None

    @property
    def cure(self) -> str:
        """What a message says where the package is missing."""
        return f"{self.needed_for} needs the package {self.name}; pip install 'vision-encoder-fusion[{self.extra}]'"


PYDICOM = Package("pydicom", "pydicom", "DICOM", "scientific")
NIBABEL = Package("nibabel", "nibabel", "NIfTI", "scientific")
ASTROPY = Package("astropy", "astropy", "FITS", "scientific")
PILLOW_HEIF = Package("pillow-heif", "pillow_heif", "HEIC", "heif")
OPENSLIDE = Package("openslide-python", "openslide", "tile= (a whole slide)", "slides")
