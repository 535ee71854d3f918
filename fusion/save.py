"""A fused model's folder: weights, processor, model card, and, for those who ask, a stub for processes that import only transformers."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import ProcessorMixin

from fusion.image_processing_fusion import FusionImageProcessor
from fusion.modeling_fused_vision import FusedVisionModel
from fusion.modeling_fusion_vlm import FusionVlmForConditionalGeneration
from fusion.processing_fusion import FusionProcessor
from vision_core.checkpoints import write_text_atomically
from vision_core.model_card import write_model_card

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
conversations = [[{"role": "user", "content": [shown, {"type": "text", "text": "What is in the picture?"}]}]]  # one or more
inputs = processor.apply_chat_template(
    conversations,
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
    processor_kwargs={"padding": True},
)
answers = model.generate(**inputs, max_new_tokens=32)[:, inputs["input_ids"].shape[1] :]
print(processor.batch_decode(answers, skip_special_tokens=True))
```"""

STUB_FILE = "fusion_stub.py"
STUB = '''\
"""Takes the classes of this checkpoint from the package that has them; there is no other code here."""

try:
    from fusion import (  # noqa: F401
        FusedVisionConfig,
        FusedVisionModel,
        FusionImageProcessor,
        FusionProcessor,
        FusionVlmConfig,
        FusionVlmForConditionalGeneration,
    )
except ImportError as error:
    raise ImportError("this checkpoint needs the package vision-encoder-fusion: pip install vision-encoder-fusion") from error
'''


def save_fused(
    folder: Path,
    model: FusedVisionModel | FusionVlmForConditionalGeneration,
    processor: FusionImageProcessor | FusionProcessor,
    *,
    command: str,
    stub: bool = False,
) -> None:
    """Write the model, its processor and README.md to `folder`, from which the Auto classes load them.

    command: what a reader types to make the same. stub: also write a file of Python, with which a process that imports only transformers, and passes
    `trust_remote_code=True`, loads the model; it does nothing but import this package.
    """
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if stub:
        _write_stub(Path(folder), model, processor)
    vision = model if isinstance(model, FusedVisionModel) else model.vision_model
    settings = {
        "encoders": ", ".join(encoder.name for encoder in vision.encoders),
        "encoder grids": ", ".join(map(str, vision.config.encoder_grids)),
        "connector": vision.config.connector,
        "grid": vision.config.grid,
        "hidden size": vision.config.hidden_size,
        "parameters of the encoders": f"{_count(vision.encoders):,}",
        "parameters of the connector": f"{_count(vision.connector):,}",
    }
    if vision is not model:
        settings |= {
            "language model": type(model.language_model).__name__,
            "parameters of the language model": f"{_count(model.language_model):,}",
            "layers followed by a look at the encoders": ", ".join(map(str, model.config.sva_layers)) or "none",
            "parameters of those looks": f"{_count(model.vision_sampler_layers):,}",
        }
    write_model_card(
        Path(folder) / "README.md",
        title="Fused vision encoder" if vision is model else "Vision-language model of fused encoders",
        summary=f"{len(vision.encoders)} vision encoders behind one connector"
        + ("." if vision is model else ", and a language model that reads its tokens."),
        training_command=command,
        data="None: encoders and language model have the weights they came with, the connector is untrained.",
        results=[],
        settings=settings,
        note="The connector is untrained: tokens mean nothing to a language model before it has been trained.",
        tags=["vision", "fusion"],
        pipeline_tag="image-feature-extraction" if vision is model else "image-text-to-text",
        loading=VISION_SNIPPET if vision is model else VLM_SNIPPET,
    )


def _count(module: object) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _write_stub(folder: Path, model: object, processor: object) -> None:
    is_processor = isinstance(processor, ProcessorMixin)
    auto_model = "AutoModelForImageTextToText" if is_processor else "AutoModel"
    auto_map = {"AutoConfig": type(model.config).__name__, auto_model: type(model).__name__}
    _add_auto_map(folder / "config.json", auto_map)
    if is_processor:
        _add_auto_map(folder / "processor_config.json", {"AutoProcessor": type(processor).__name__})
    else:
        _add_auto_map(folder / "preprocessor_config.json", {"AutoImageProcessor": type(processor).__name__})
    write_text_atomically(folder / STUB_FILE, STUB)


def _add_auto_map(path: Path, classes: dict[str, str]) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    values["auto_map"] = {auto: f"{Path(STUB_FILE).stem}.{name}" for auto, name in classes.items()}
    write_text_atomically(path, json.dumps(values, indent=2) + "\n")
