"""Checkpoints of fused models are loaded in full or refused."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

import fusion  # noqa: F401 (registers the classes)
from vision_core.errors import UserError


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path, fused):
    fused()[0].save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    gone = dict(tensors)
    del gone["connector.vision_query"]
    save_file(gone, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks connector\.vision_query; save the whole model again"):
        AutoModel.from_pretrained(tmp_path)
    save_file({**tensors, "connector.surplus": torch.zeros(3)}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"does not know: connector\.surplus"):
        AutoModel.from_pretrained(tmp_path)
    save_file({**tensors, "connector.vision_query": torch.zeros(3, 3)}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"tensors of another shape: connector\.vision_query"):
        AutoModel.from_pretrained(tmp_path)
