"""Vision encoders behind one contract: loading, judging frozen features, and pictures of them."""

from encoders.base import Encoder, EncoderConfig, Features, LayerFeatures
from encoders.load import build_encoder, load_encoder, save_encoder
from encoders.names import list_encoders

__all__ = [
    "Encoder",
    "EncoderConfig",
    "Features",
    "LayerFeatures",
    "build_encoder",
    "list_encoders",
    "load_encoder",
    "save_encoder",
]
