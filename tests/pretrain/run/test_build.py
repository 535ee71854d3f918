"""The parts of a run have what its options say."""

from pretrain.run.args import DINOv2Arguments
from pretrain.run.build import build_multicrop
from vision_core.images.open_source import open_source


def test_options_reach_the_crops():
    args = DINOv2Arguments(
        horizontal_flip_probability=0.1, vertical_flip_probability=0.2, quarter_turns=True, solarize_probability=0.3,
        band_jitter_strength=0.4, channel_drop_probability=0.5, stain_strength=0.6,
    )  # fmt: skip
    crops = build_multicrop(args, open_source("scenes"))
    assert crops.poses == (0.1, 0.2, True) and crops.global_crops[1].solarize_probability == 0.3
    assert (crops.band_jitter_strength, crops.channel_drop_probability, crops.stain_strength) == (
        0.4,
        0.5,
        0.6,
    )
