"""What frozen encoders make of an image, computed once and kept on disk: a run then reads maps and runs no encoder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from encoders.evaluation.feature_cache import encoder_fingerprint
from fusion import FusedVisionModel, FusionImageProcessor
from vision_core.checkpoints import make_readable
from vision_core.errors import UserError


class MapCache:
    """A folder with one safetensors file for every image: `vision_model.maps` of it, in `dtype`.

    A file's name is a hash of the pixels of the image; the folder's, one of everything between the pixels and the maps (weights, preprocessing, grids, dtype).
    So another run, another data set with the same images, or a longer one, finds what is there.
    """

    def __init__(self, root: Path, vision_model: FusedVisionModel, image_processor: FusionImageProcessor, dtype: torch.dtype) -> None:
        fields = {
            "encoders": [encoder_fingerprint(encoder) for encoder in vision_model.encoders],
            "grids": list(vision_model.config.encoder_grids),
            "transforms": image_processor.transforms,
            "fit": image_processor.fit,
            "dtype": str(dtype),
        }
        key = json.dumps(fields, sort_keys=True)
        self.folder, self.dtype = root / hashlib.blake2b(key.encode(), digest_size=16).hexdigest(), dtype

    def path(self, image: Tensor) -> Path:
        """Of an image `[3, H, W]` uint8."""
        name = hashlib.blake2b(image.contiguous().numpy().tobytes(), digest_size=16, key=str(tuple(image.shape)).encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def __contains__(self, image: Tensor) -> bool:
        return self.path(image).is_file()

    def load(self, image: Tensor) -> list[Tensor]:
        """Of each encoder `[width, grid, grid]`. Raises UserError where they are not there or cannot be read."""
        path = self.path(image)
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{path} holds no features of an image ({error}); start the run again, which makes what is missing; remove a damaged file"
            ) from None
        return [tensors[str(number)] for number in range(len(tensors))]

    def save(self, image: Tensor, maps: Sequence[Tensor]) -> None:
        """Whole or not at all, also where two processes write the same."""
        path = self.path(image)
        aside = path.with_suffix(f".tmp-{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({str(number): each.to(self.dtype).cpu().contiguous() for number, each in enumerate(maps)}, aside)
            make_readable(aside)
            aside.replace(path)
        except (OSError, SafetensorError) as error:
            aside.unlink(missing_ok=True)
            raise UserError(
                f"features cannot be written to {self.folder} ({error}); free space, or name another folder by --feature_cache"
            ) from None

    def fill(
        self, images: Iterable[Tensor], vision_model: FusedVisionModel, image_processor: FusionImageProcessor, batch_size: int = 32
    ) -> int:
        """Make what is missing of `images` `[3, H, W]`; how many were."""
        waiting: dict[Path, Tensor] = {}
        made = 0
        with torch.inference_mode():
            for image in images:
                if image not in self:
                    waiting[self.path(image)] = image
                if len(waiting) == batch_size:
                    made += self._make(waiting, vision_model, image_processor)
            return made + (self._make(waiting, vision_model, image_processor) if waiting else 0)

    def _make(self, waiting: dict[Path, Tensor], vision_model: FusedVisionModel, image_processor: FusionImageProcessor) -> int:
        images = list(waiting.values())
        for image, *maps in zip(images, *vision_model.maps(image_processor(images)["pixel_values"]), strict=True):
            self.save(image, maps)
        waiting.clear()
        return len(images)
