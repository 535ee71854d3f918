"""Connectors that fuse vision encoders, and fused models behind the Auto classes of transformers.

Importing this package registers `fused_vision` and `fusion_vlm` with `AutoConfig`, `AutoModel`,
`AutoModelForImageTextToText`, `AutoModelForCausalLM`, `AutoImageProcessor` and `AutoProcessor`.
"""

from fusion.fuse_args import look_first_as_program

look_first_as_program()

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
)

from fusion.assemble import assemble_vlm, fuse_encoders
from fusion.configuration_fusion import FusedVisionConfig, FusionVlmConfig
from fusion.connectors.build import CONNECTORS, build_connector
from fusion.connectors.spatial_vision_aggregator import SpatialVisionAggregator
from fusion.image_processing_fusion import FusionImageProcessor
from fusion.modeling_fused_vision import FusedVisionModel
from fusion.modeling_fusion_vlm import FusionVlmForConditionalGeneration
from fusion.processing_fusion import FusionProcessor

AutoConfig.register("fused_vision", FusedVisionConfig)
AutoConfig.register("fusion_vlm", FusionVlmConfig)
AutoModel.register(FusedVisionConfig, FusedVisionModel)
AutoModelForImageTextToText.register(FusionVlmConfig, FusionVlmForConditionalGeneration)
# Tools that do not know which kind of model a folder holds, TRL among them, take this class.
AutoModelForCausalLM.register(FusionVlmConfig, FusionVlmForConditionalGeneration)
AutoImageProcessor.register(FusedVisionConfig, image_processor_classes={"torchvision": FusionImageProcessor})
AutoImageProcessor.register(FusionVlmConfig, image_processor_classes={"torchvision": FusionImageProcessor})
AutoProcessor.register(FusionVlmConfig, FusionProcessor)

__all__ = [
    "CONNECTORS",
    "FusedVisionConfig",
    "FusedVisionModel",
    "FusionImageProcessor",
    "FusionProcessor",
    "FusionVlmConfig",
    "FusionVlmForConditionalGeneration",
    "SpatialVisionAggregator",
    "assemble_vlm",
    "build_connector",
    "fuse_encoders",
]
