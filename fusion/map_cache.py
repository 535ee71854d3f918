"""Keep the feature maps of frozen encoders on disk: they are computed once for each image, and
training then reads them and runs no encoder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from encoders.evaluation.feature_cache import encoder_fingerprint
from fusion import FusedVisionModel, FusionImageProcessor
from fusion.modeling_fused_vision import output_width
from vision_core.errors import UserError
from vision_core.files.disk_space import not_written
from vision_core.files.files_aside import remove_litter
from vision_core.files.sealed_tensors import (
    DamagedTensors,
    NotSealed,
    read_sealed,
    remove_damaged,
    sealed_bytes,
    write_sealed,
)

ROOM = (
    "make room and start again, which goes on from what is there, or name another folder by --feature_cache"
)
WRITERS = 16  # threads that write files; 16 files together take little longer than one
IMAGE_KEY = "image"  # in a file's metadata, the name of the image whose maps the file holds


class MapCache:
    """A folder with one sealed file for each image, which holds `vision_model.maps` of the image in
    `dtype`.

    The name of a file is a hash of the image's pixels. The name of the folder is a hash of
    everything between the pixels and the maps: weights, preprocessing, grids, dtype. So another
    run, or another data set with the same images, finds the files that are there. Several processes
    and runs may fill the folder together: a file is complete or absent.

    Attributes:
        image_bytes: the size of the file of one image.
    """

    def __init__(
        self,
        root: Path,
        vision_model: FusedVisionModel,
        image_processor: FusionImageProcessor,
        dtype: torch.dtype,
    ) -> None:
        grids = list(vision_model.config.encoder_grids)
        fields = {
            "encoders": [encoder_fingerprint(encoder) for encoder in vision_model.encoders],
            "grids": grids,
            "transforms": image_processor.transforms,
            "fit": image_processor.fit,
            "dtype": str(dtype),
        }
        key = json.dumps(fields, sort_keys=True)
        self.folder = root / hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
        self.dtype = dtype
        widths = [output_width(encoder) for encoder in vision_model.encoders]
        numbers = sum(width * grid**2 for width, grid in zip(widths, grids, strict=True))
        self.image_bytes = sealed_bytes(numbers * dtype.itemsize)

    def path(self, image: Tensor) -> Path:
        """The path of the file of an image `[3, H, W]` uint8."""
        shape = str(tuple(image.shape)).encode()
        pixels = image.contiguous().numpy().tobytes()
        name = hashlib.blake2b(pixels, digest_size=16, key=shape).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def __contains__(self, image: Tensor) -> bool:
        """Whether a complete file of the image is there; the file is read to the end."""
        return self.look_at(self.path(image)) == "whole"

    def look_at(self, path: Path) -> Literal["whole", "missing", "damaged"]:
        """Verify an image's file. A file that does not verify or cannot be read is removed."""
        try:
            status = path.lstat()
        except OSError:
            return "missing"
        try:
            self._read(path)
            return "whole"
        except FileNotFoundError:
            return "missing"
        except NotSealed:
            return "missing"  # of an earlier version
        except (OSError, DamagedTensors):
            remove_damaged(path, status)
            return "damaged"

    def load(self, image: Tensor) -> list[Tensor]:
        """Read the map `[width, grid, grid]` of each encoder.

        Raises UserError where the file is not there, or does not verify.
        """
        path = self.path(image)
        try:
            tensors = self._read(path)
        except (OSError, NotSealed, DamagedTensors) as error:
            reason = getattr(error, "strerror", None) or error
            cure = "start the run again, which makes them anew"
            raise UserError(f"{path} does not hold an image's features: {reason}; {cure}") from None
        return [tensors[str(number)] for number in range(len(tensors))]

    def save(self, image: Tensor, maps: Sequence[Tensor]) -> None:
        """Write the file of an image, complete or not at all, even where two processes write it.

        Raises UserError on a full disk.
        """
        path = self.path(image)
        tensors = {str(number): each.to(self.dtype).cpu() for number, each in enumerate(maps)}
        try:
            write_sealed(path, tensors, {IMAGE_KEY: path.stem}, self.folder)
        except OSError as error:
            raise not_written(path, error, self.image_bytes, ROOM) from None

    def fill(
        self,
        images: Iterable[Tensor],
        vision_model: FusedVisionModel,
        image_processor: FusionImageProcessor,
        batch_size: int = 32,
    ) -> int:
        """Compute the maps that are missing or damaged of `images` `[3, H, W]`; return how many
        images that were."""
        waiting: dict[Path, Tensor] = {}
        made = 0
        with torch.inference_mode():
            for image in images:
                if image not in self:
                    waiting[self.path(image)] = image
                if len(waiting) == batch_size:
                    made += self._make(waiting, vision_model, image_processor)
            if waiting:
                made += self._make(waiting, vision_model, image_processor)
        return made

    def remove_litter(self) -> None:
        """Remove what killed processes were writing."""
        of_earlier_versions = self.folder.glob("[0-9a-f][0-9a-f]/*.tmp-*")
        remove_litter([*self.folder.glob(".tmp-*"), *of_earlier_versions])

    def _read(self, path: Path) -> dict[str, Tensor]:
        sealed = read_sealed(path)
        if sealed.metadata.get(IMAGE_KEY) != path.stem:
            raise DamagedTensors("features of another image")
        return sealed.tensors

    def _make(
        self,
        waiting: dict[Path, Tensor],
        vision_model: FusedVisionModel,
        image_processor: FusionImageProcessor,
    ) -> int:
        """Compute and save the maps of the waiting images; empty `waiting` and return their
        number."""
        images = list(waiting.values())
        maps = vision_model.maps(image_processor(images)["pixel_values"])
        of_images = zip(*(each.to(self.dtype).cpu() for each in maps), strict=True)
        with ThreadPoolExecutor(WRITERS) as writers:
            for _ in writers.map(self.save, images, of_images):
                pass  # what one of them raised is raised here
        waiting.clear()
        return len(images)
