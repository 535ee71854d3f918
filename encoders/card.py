"""The model card that `save_encoder` writes beside an encoder."""

from __future__ import annotations

from pathlib import Path

from encoders.base import Encoder
from vision_core.model_card import write_model_card
from vision_core.printable import in_code
from vision_core.runs.run_facts import data_licence, made_with, millions

SNIPPET = """\
```python
from encoders import load_encoder  # pip install vision-encoder-fusion

encoder = load_encoder("path/to/this/folder")
features = encoder(encoder.transform("{image}"))  # {words}
features.patch_map, features.pooled  # [1, C, rows, columns], and [1, D] or None
```"""


def snippet(num_channels: int) -> str:
    """The lines of the card that give an image to an encoder of so many channels."""
    if num_channels == 3:
        return SNIPPET.format(image="image.jpg", words="upright and in colour, as in training")
    if num_channels == 1:
        return SNIPPET.format(image="image.jpg", words="upright, its luminance of 0 to 1")
    words = f"a file of {num_channels} bands, in the scale of the encoder's mean and std"
    return SNIPPET.format(image="image.tif", words=words)


def write_encoder_card(folder: Path, encoder: Encoder) -> None:
    """Write README.md in `folder`."""
    source = in_code(encoder.source) if encoder.source else "a model that was built in memory"
    summary = f"A vision encoder, saved from {source}."
    data = f"What the source was trained on. {data_licence([encoder.source])}"
    note = "Nothing was measured here; the source's own card says what it is for."
    if encoder.untrained:
        summary = f"A vision encoder, saved from {source}, with random weights."
        data = "None: the weights are random. Licence of the data: there is none."
        note = "The weights are random: it is good for tests alone."
    height, width = encoder.transform.size
    settings = {
        "parameters": millions([encoder]),
        "image sizes": f"{height} x {width}, {encoder.num_channels} channels",
        "layers": f"{encoder.num_layers}, the last of width {encoder.width}",
        "layers handed on": ", ".join(map(str, encoder.layers)),
        **made_with(),
    }
    write_model_card(
        folder / "README.md",
        title=f"Encoder from {encoder.name}",
        summary=summary,
        training_command=f"# saved by encoders.save_encoder from {encoder.name}; nothing was trained",
        data=data,
        results=[],
        settings=settings,
        note=note,
        tags=("vision",),
        loading=snippet(encoder.num_channels),
        library_name="vision-encoder-fusion",
    )
