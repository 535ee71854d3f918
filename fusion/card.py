"""The model card of a fused model that has not been trained here, and the code that shows how any
fused model is used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fusion.modeling_fused_vision import FusedVisionModel
from fusion.modeling_fusion_vlm import FusionVlmForConditionalGeneration
from vision_core.model_card import write_model_card
from vision_core.runs.run_facts import data_licence, made_with, millions

VISION_SNIPPET = """\
```python
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

import fusion  # registers the model with the Auto classes; pip install vision-encoder-fusion

folder = "path/to/this/folder"
processor = AutoImageProcessor.from_pretrained(folder)
model = AutoModel.from_pretrained(folder).eval()

inputs = processor(Image.open("image.jpg"), return_tensors="pt")
with torch.no_grad():
    tokens = model(**inputs).last_hidden_state  # [1, tokens, width]
```"""

VLM_SNIPPET = """\
```python
from transformers import AutoModelForImageTextToText, AutoProcessor

import fusion  # registers the model with the Auto classes; pip install vision-encoder-fusion

folder = "path/to/this/folder"
processor = AutoProcessor.from_pretrained(folder)
model = AutoModelForImageTextToText.from_pretrained(folder).eval()

shown = {"type": "image", "path": "image.jpg"}
messages = [{"role": "user", "content": [shown, {"type": "text", "text": "What is in the picture?"}]}]
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
answer = model.generate(**inputs, max_new_tokens=32)[0, inputs["input_ids"].shape[1] :]
print(processor.decode(answer, skip_special_tokens=True))
```

Several conversations at once. The processor fills shorter ones up on the left, so that every answer begins at the
same place:

```python
question = {"type": "text", "text": "Which colours does the picture have? Name the three that cover most of it."}
batch = [messages, [{"role": "user", "content": [shown, question]}]]
inputs = processor.apply_chat_template(
    batch,
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
    processor_kwargs={"padding": True},
)
answers = model.generate(**inputs, max_new_tokens=32)[:, inputs["input_ids"].shape[1] :]
print(processor.batch_decode(answers, skip_special_tokens=True))
```"""

UNTRAINED_DATA = (
    "None: encoders and language model have the weights they came with, the connector is untrained."
)
UNTRAINED_NOTE = (
    "The connector is untrained: tokens mean nothing to a language model before it has been trained. "
    "It is not for use, but for recipes/sva_align.py and recipes/sva_sft.py. The licences of the parts "
    "are those of their authors, and hold for the whole."
)


def write_fused_card(
    folder: Path,
    model: FusedVisionModel | FusionVlmForConditionalGeneration,
    *,
    command: str,
    data: str = UNTRAINED_DATA,
    note: str = UNTRAINED_NOTE,
) -> None:
    """Write README.md of `folder`.

    command: what a reader types to make the same model. data: what the weights have learnt from.
    note: what is not known of them.
    """
    if isinstance(model, FusedVisionModel):
        vision = model
        title = "Fused vision encoder"
        summary_end = "."
        facts = facts_of_vision(vision)
        pipeline_tag = "image-feature-extraction"
        loading = VISION_SNIPPET
    else:
        vision = model.vision_model
        title = "Vision-language model of fused encoders"
        summary_end = ", and a language model that reads its tokens."
        facts = facts_of_vision(vision) | facts_of_language(model)
        pipeline_tag = "image-text-to-text"
        loading = VLM_SNIPPET
    names = [encoder.name for encoder in vision.encoders]
    write_model_card(
        folder / "README.md",
        title=title,
        summary=f"{len(names)} vision encoders behind one connector{summary_end}",
        training_command=command,
        data=f"{data}\n\n{licence_of_parts(names)}",
        results=[],
        settings=facts | made_with(),
        note=note,
        tags=["vision", "fusion"],
        pipeline_tag=pipeline_tag,
        loading=loading,
    )


def licence_of_parts(names: Sequence[str]) -> str:
    """What the card says of the licences of the encoders that were fused."""
    return data_licence(names).replace("of the data", "of the encoders")


def facts_of_vision(vision: FusedVisionModel) -> dict[str, object]:
    """What the card says of the encoders and the connector."""
    names = []
    sides = []
    for encoder in vision.encoders:
        names.append(encoder.name)
        sides.append(" x ".join(map(str, encoder.transform.size)))
    return {
        "encoders": ", ".join(names),
        "image sizes": ", ".join(sides),
        "encoder grids": ", ".join(map(str, vision.config.encoder_grids)),
        "connector": vision.config.connector,
        "grid": vision.config.grid,
        "hidden size": vision.config.hidden_size,
        "parameters of the encoders": millions(vision.encoders),
        "parameters of the connector": millions([vision.connector]),
        "parameters": millions([vision]),
    }


def facts_of_language(model: FusionVlmForConditionalGeneration) -> dict[str, object]:
    """What the card says of the language model and of its layers that look at the encoders again."""
    return {
        "language model": type(model.language_model).__name__,
        "parameters of the language model": millions([model.language_model]),
        "layers followed by a look at the encoders": ", ".join(map(str, model.config.sva_layers)) or "none",
        "parameters of those looks": millions([model.vision_sampler_layers]),
        "parameters": millions([model]),
    }
