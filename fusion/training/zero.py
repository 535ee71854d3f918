"""What a fused model needs under DeepSpeed's ZeRO."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import TrainingArguments
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from fusion.connectors.cross_attention import VisionCrossAttentionLayer
from fusion.connectors.resampler import ResamplerLayer

# They compute with weights of the modules in them, which they do not call.
LAYERS_FETCHED_AS_ONE = (VisionCrossAttentionLayer, ResamplerLayer)


def name_a_single_process() -> None:
    """Tell DeepSpeed that this process is the only one, where no launcher has set the variables."""
    if "WORLD_SIZE" in os.environ:
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def join_deepspeed() -> None:
    """Make DeepSpeed's group of processes, which ZeRO-3 asks for their number when a model is
    made."""
    import deepspeed

    deepspeed.init_distributed()


def fetch_layers_as_one(model: nn.Module) -> None:
    """Have ZeRO-3 fetch the weights of such layers together, not module by module."""
    from deepspeed.utils import set_z3_leaf_modules

    kinds_in_model = {type(module) for module in model.modules()}
    found = [kind for kind in LAYERS_FETCHED_AS_ONE if kind in kinds_in_model]
    if found:  # DeepSpeed refuses a kind that the model lacks
        set_z3_leaf_modules(model, found)


@contextmanager
def unsharded_models(settings: TrainingArguments) -> Iterator[None]:
    """Inside, models have all their weights on every process, also where ZeRO-3 would shard
    them."""
    config = getattr(settings, "hf_deepspeed_config", None)
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config is not None:
            set_hf_deepspeed_config(config)
