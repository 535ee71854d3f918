"""Vision encoders behind one contract: loading, judging frozen features, and pictures of them."""

from encoders.base import Encoder, EncoderConfig, Features, LayerFeatures
from encoders.load import load_encoder
from encoders.names import list_encoders
from encoders.saved import build_encoder, save_encoder

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
