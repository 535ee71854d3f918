"""How a language model is made to read images.

Their tokens stand in for embeddings, and between its layers the images are looked at again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from fusion.configuration_fusion import FusionVlmConfig
from fusion.connectors.cross_attention import VisionCrossAttentionLayer
from fusion.connectors.windows import EncodedImage, VisionWindows
from fusion.modeling_fused_vision import FusedVisionModel, Pixels
from vision_core.errors import UserError


class ReadsImages:
    """What a model with its head and one without it share. language_model: with its head, or
    without."""

    config: FusionVlmConfig
    vision_model: FusedVisionModel
    language_model: nn.Module
    vision_sampler_layers: nn.ModuleList

    def get_image_features(
        self, pixel_values: Pixels, image_sizes: Tensor, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """`pooler_output`: an `EncodedImage` for every image.

        `generate` calls this once, repeats its images for beams, and cuts them where a prompt is
        read in chunks.
        """
        return BaseModelOutputWithPooling(pooler_output=self.vision_model.encode(pixel_values, image_sizes))

    @contextmanager
    def reading(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Pixels | None = None,
        image_sizes: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        vision_maps: Sequence[Tensor] | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Any,
    ) -> Iterator[dict[str, Any]]:
        """Inside, the arguments that `language_model` is to be called with.

        The arguments here are those of `FusionVlmForConditionalGeneration.forward`, which says what
        they are.
        """
        images = self._images(pixel_values, image_sizes, vision_maps, mm_encoder_outputs)
        if inputs_embeds is None:
            inputs_embeds = self.language_model.get_input_embeddings()(input_ids)
        elif images:
            raise UserError(
                "images need input_ids, which say where they stand, and not inputs_embeds; give input_ids"
            )
        if past_key_values is not None:
            kwargs["past_key_values"] = past_key_values  # as transformers before 5.24 calls it, then `cache`
        cache = past_key_values if past_key_values is not None else kwargs.get("cache")
        places = None if input_ids is None else input_ids == self.config.image_token_id
        if places is not None and (images or (places.any() and not _is_continued(cache))):
            inputs_embeds = _written(inputs_embeds, places, images)
        if position_ids is None and cache is None and attention_mask is not None and attention_mask.ndim == 2:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp_min(
                0
            )  # padding on the left shifts no position
        with self._looking_again(images, places):
            yield kwargs | {
                "inputs_embeds": inputs_embeds,
                "attention_mask": attention_mask,
                "position_ids": position_ids,
            }

    def _images(
        self, pixel_values: Any, image_sizes: Any, vision_maps: Any, encoded: dict[str, Any] | None
    ) -> list[EncodedImage]:
        if encoded and encoded.get("image") is not None:
            return list(encoded["image"].pooler_output)
        given = pixel_values if vision_maps is None else vision_maps
        if given is None and image_sizes is None:
            return []
        if given is None or image_sizes is None:
            missing = "pixel_values" if given is None else "image_sizes"
            raise UserError(
                f"{missing} is missing; pixel_values and image_sizes go together, as the processor returns them"
            )
        return self.vision_model.encode(pixel_values, image_sizes, vision_maps)

    @contextmanager
    def _looking_again(self, images: list[EncodedImage], places: Tensor | None) -> Iterator[None]:
        """Inside, the language model's layers in `config.sva_layers` are followed by a look at the
        images.

        Without images they are followed by nothing.
        """
        cells = torch.cat([image.cells for image in images]) if images and self.config.sva_layers else None
        if (
            cells is None or not cells.any()
        ):  # a part of a prompt may have no more of an image than the end of a row
            yield
            return
        windows = VisionWindows.join([image.windows for image in images])
        rows = places.flatten().nonzero().flatten()[cells.to(places.device)]  # in the flattened [B * T]
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
    """The layers of a language model, whatever its class calls them. Raises UserError where that is
    not plain."""
    count = language_model.config.get_text_config().num_hidden_layers
    found = [
        child
        for child in language_model.get_decoder().children()
        if isinstance(child, nn.ModuleList) and len(child) == count
    ]
    if len(found) != 1:
        raise UserError(
            f"{type(language_model).__name__} has no single list of {count} layers, so vision layers have no place in it; "
            "set num_sva_layers=0"
        )
    return found[0]


def _is_continued(cache: Any) -> bool:
    """Whether a text's beginning has been read already.

    An image's token that comes later, without an image, is a token like any other.
    """
    return cache is not None and int(cache.get_seq_length()) > 0


def _look(sampler: VisionCrossAttentionLayer, windows: VisionWindows, rows: Tensor) -> Any:
    """A forward hook that updates the states `[B, T, H]` behind a layer at the flat places `rows`
    `[N]`."""

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        flat, here = states.flatten(0, 1), rows.to(states.device)
        updated = sampler(flat[here], windows.to(states.device)).to(flat)
        states = flat.index_copy(0, here, updated).view_as(states)
        return (states, *output[1:]) if isinstance(output, tuple) else states

    return hook


def _written(inputs_embeds: Tensor, places: Tensor, images: Sequence[EncodedImage]) -> Tensor:
    """`[B, T, H]` with the images' tokens in the `[B, T]` places, in order. Raises UserError where
    their numbers differ."""
    counts = [len(image) for image in images]
    if int(places.sum()) != sum(counts):
        raise UserError(
            f"the text has {int(places.sum())} places for image tokens and {len(images)} images have {sum(counts)} "
            f"({', '.join(map(str, counts)) or 'none'}); "
            "make text and images with one call of the processor, one <image> for each image, and truncate no image"
        )
    tokens = torch.cat([image.tokens for image in images]).to(inputs_embeds.device, inputs_embeds.dtype)
    return inputs_embeds.masked_scatter(places[..., None].to(inputs_embeds.device), tokens)
