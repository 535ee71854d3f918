"""HEIC and AVIF."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vision_core.images.open_source import open_source
from vision_core.unreadable import UnreadableImage


@pytest.mark.parametrize("ending", ["heic", "avif"])
def test_heic_and_avif_are_decoded_like_other_pictures(tmp_path: Path, ending: str) -> None:
    import pillow_heif

    ramp = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (48, 1))
    picture = Image.fromarray(np.stack([ramp, ramp[:, ::-1], ramp], axis=-1))
    exif = Image.Exif()
    exif[0x0112] = 6
    if ending == "avif":
        picture.save(tmp_path / "0.avif", quality=100, subsampling="4:4:4", exif=exif)
    else:
        pillow_heif.from_pillow(picture).save(
            tmp_path / "0.heic", quality=-1, chroma=444, exif=exif.tobytes()
        )
    source = open_source(str(tmp_path))
    upright = np.asarray(picture.transpose(Image.Transpose.ROTATE_270)).astype(int)
    assert source[0].image.shape == (3, 32, 48)
    assert np.abs(source[0].image.permute(1, 2, 0).numpy() - upright).max() <= 4
    assert open_source(str(tmp_path), 1)[0].image.shape == (1, 32, 48)
    with pytest.raises(UnreadableImage, match="not_5_channels"):
        open_source(str(tmp_path), 5)[0]
