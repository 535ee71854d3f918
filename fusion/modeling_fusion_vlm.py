"""A language model that reads the tokens of several vision encoders, and may look into them again between its layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithPast

from fusion.configuration_fusion import FusionVlmConfig
from fusion.cross_attention import VisionCrossAttentionLayer
from fusion.modeling_fused_vision import FusedPreTrainedModel, FusedVisionModel
from fusion.supervised_loss import supervised_loss
from fusion.windows import EncodedImage, VisionWindows
from vision_core.errors import UserError


class FusionVlmForConditionalGeneration(FusedPreTrainedModel, GenerationMixin):
    """Fused vision and any causal language model of transformers.

    Where a token of `input_ids` is `config.image_token_id`, its embedding is replaced by the next token of the next image. After the layers
    `config.sva_layers` of the language model the states at image positions, newlines excepted, are updated from the windows of their place in all
    encoders (Cambrian-1, section 3.2). Nothing about images is kept between calls.

    vision_model, language_model: to take as they are; by default new ones are made by the config.
    """

    config: FusionVlmConfig
    config_class = FusionVlmConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    _skip_keys_device_placement = ["past_key_values"]

    def __init__(
        self, config: FusionVlmConfig, vision_model: FusedVisionModel | None = None, language_model: PreTrainedModel | None = None
    ) -> None:
        super().__init__(config)
        self.vision_model = vision_model or FusedVisionModel(config.vision_config)
        self.language_model = language_model or AutoModelForCausalLM.from_config(config.text_config, trust_remote_code=False)
        hidden_size = config.text_config.hidden_size
        if config.vision_config.hidden_size != hidden_size:
            raise UserError(
                f"the fused encoder makes tokens of {config.vision_config.hidden_size} channels and the language model reads {hidden_size}; "
                f"fuse the encoders with hidden_size={hidden_size}"
            )
        connector = self.vision_model.connector
        self.vision_sampler_layers = nn.ModuleList(
            VisionCrossAttentionLayer(
                hidden_size,
                connector.width,
                connector.num_heads,
                connector.window_sizes(connector.grid),
                zero_init_output=config.zero_init_sva,
                shared_norms=connector.shared_norms,
            )
            for _ in config.sva_layers
        )
        self.post_init()

    # -- what transformers asks a model for ------------------------------------------------------------------------------------

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_output_embeddings(value)

    def get_decoder(self) -> nn.Module:
        return self.language_model.get_decoder()

    # -- images ----------------------------------------------------------------------------------------------------------------

    def get_image_features(self, pixel_values: Sequence[Tensor], image_sizes: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """`pooler_output`: an `EncodedImage` for every image. `generate` calls this once, and repeats its images for beams."""
        return BaseModelOutputWithPooling(pooler_output=self.vision_model.encode(pixel_values, image_sizes))

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Sequence[Tensor] | None = None,
        image_sizes: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        supervised_only: bool = False,
        vision_maps: Sequence[Tensor] | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """As the language model's forward, which gets all `kwargs`, and with images.

        Args:
            input_ids: `[B, T]`, with `image_token_id` for every token of every image.
            pixel_values, image_sizes: of all images of the batch in the order of their places in it; what the processor returns.
            mm_encoder_outputs: `{"image": get_image_features(...)}` in place of them.
            vision_maps: in place of pixel_values, `vision_model.maps` of them, where frozen encoders need not run again.
            labels: `[B, T]`, -100 where no loss is wanted; the language model's own loss.
            supervised_only: the same loss, and no logits: those of positions without a label are not computed (see `supervised_loss`).

        Raises UserError where images and places for them do not match.
        """
        images = self._images(pixel_values, image_sizes, vision_maps, mm_encoder_outputs)
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        elif images:
            raise UserError("images need input_ids, which say where they stand, and not inputs_embeds; give input_ids")
        places = None if input_ids is None else input_ids == self.config.image_token_id
        if places is not None and (images or places.any()):
            inputs_embeds = _written(inputs_embeds, places, images)
        if past_key_values is not None:
            kwargs["past_key_values"] = past_key_values  # as transformers before 5.24 calls it, then `cache`
        is_start = past_key_values is None and kwargs.get("cache") is None
        if position_ids is None and is_start and attention_mask is not None and attention_mask.ndim == 2:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)  # padding on the left shifts no position
        kwargs |= {"inputs_embeds": inputs_embeds, "attention_mask": attention_mask, "position_ids": position_ids}
        with self._looking_again(images, places):
            if supervised_only and labels is not None:
                return CausalLMOutputWithPast(loss=supervised_loss(self.language_model, labels, **kwargs))
            return self.language_model(labels=labels, **kwargs)

    def generate(self, inputs: Tensor | None = None, **kwargs: Any) -> Any:
        """As in transformers. Raises UserError for a batch that is padded on the right, behind which nothing can be written."""
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 2 and not mask[:, -1].all():
            raise UserError(
                "generate needs padding on the left: the attention_mask ends with 0; set processor.tokenizer.padding_side = 'left'"
            )
        return super().generate(inputs, **kwargs)

    def _images(self, pixel_values: Any, image_sizes: Any, vision_maps: Any, encoded: dict[str, Any] | None) -> list[EncodedImage]:
        if encoded and encoded.get("image") is not None:
            return list(encoded["image"].pooler_output)
        given = pixel_values if vision_maps is None else vision_maps
        if given is None and image_sizes is None:
            return []
        if given is None or image_sizes is None:
            missing = "pixel_values" if given is None else "image_sizes"
            raise UserError(f"{missing} is missing; pixel_values and image_sizes go together, as the processor returns them")
        return self.vision_model.encode(pixel_values, image_sizes, vision_maps)

    @contextmanager
    def _looking_again(self, images: list[EncodedImage], places: Tensor | None) -> Iterator[None]:
        """Inside, the language model's layers in `config.sva_layers` are followed by a look at the images; without images, by nothing."""
        if not images or not self.config.sva_layers:
            yield
            return
        windows = VisionWindows.join([image.windows for image in images])
        cells = torch.cat([image.cells for image in images]).to(places.device)
        rows = places.flatten().nonzero().flatten()[cells]  # in the flattened [B * T]
        layers = decoder_layers(self.language_model)
        hooks = [
            layers[number].register_forward_hook(_look(self.vision_sampler_layers[index], windows, rows))
            for index, number in enumerate(self.config.sva_layers)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def decoder_layers(language_model: nn.Module) -> nn.ModuleList:
    """The layers of a causal language model, whatever its class calls them. Raises UserError where that is not plain."""
    count = language_model.config.get_text_config().num_hidden_layers
    found = [child for child in language_model.get_decoder().children() if isinstance(child, nn.ModuleList) and len(child) == count]
    if len(found) != 1:
        raise UserError(
            f"{type(language_model).__name__} has no single list of {count} layers, so vision layers have no place in it; set num_sva_layers=0"
        )
    return found[0]


def _look(sampler: VisionCrossAttentionLayer, windows: VisionWindows, rows: Tensor) -> Any:
    """A forward hook that updates the states `[B, T, H]` behind a layer at the flat places `rows` `[N]`."""

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        flat, here = states.flatten(0, 1), rows.to(states.device)
        updated = sampler(flat[here], windows.to(states.device)).to(flat.dtype)
        states = flat.index_copy(0, here, updated).view_as(states)
        return (states, *output[1:]) if isinstance(output, tuple) else states

    return hook


def _written(inputs_embeds: Tensor, places: Tensor, images: Sequence[EncodedImage]) -> Tensor:
    """`[B, T, H]` with the images' tokens in the `[B, T]` places, in order. Raises UserError where their numbers differ."""
    counts = [len(image) for image in images]
    if int(places.sum()) != sum(counts):
        raise UserError(
            f"the text has {int(places.sum())} places for image tokens and {len(images)} images have {sum(counts)} ({', '.join(map(str, counts)) or 'none'}); "
            "make text and images with one call of the processor, one <image> for each image, and truncate no image"
        )
    tokens = torch.cat([image.tokens for image in images]).to(inputs_embeds.device, inputs_embeds.dtype)
    return inputs_embeds.masked_scatter(places[..., None], tokens)
