"""Make a language model read images: image tokens replace embeddings, and between the layers the
image positions look at the images again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
    """What a vision-language model with its head and one without it share.

    language_model: with its head, or without it.
    """

    config: FusionVlmConfig
    vision_model: FusedVisionModel
    language_model: nn.Module
    vision_sampler_layers: nn.ModuleList

    def get_image_features(
        self, pixel_values: Pixels, image_sizes: Tensor, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Return as `pooler_output` an `EncodedImage` for every image.

        `generate` calls this once, repeats its images for beams, and cuts them where a prompt is
        read in chunks.
        """
        return BaseModelOutputWithPooling(pooler_output=self.vision_model.encode(pixel_values, image_sizes))

    @contextmanager
    def language_model_inputs(
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
        """Give the arguments that `language_model` is to be called with inside the context, where
        its layers look at the images again.

        The arguments here are explained at `FusionVlmForConditionalGeneration.forward`.
        """
        images = self._encoded_images(pixel_values, image_sizes, vision_maps, mm_encoder_outputs)
        if inputs_embeds is None:
            inputs_embeds = self.language_model.get_input_embeddings()(input_ids)
        elif images:
            raise UserError(
                "images need input_ids, which say where they stand, and not inputs_embeds; give input_ids"
            )
        if past_key_values is not None:
            kwargs["past_key_values"] = past_key_values  # as transformers before 5.24 calls it, then `cache`
        cache = kwargs.get("cache") if past_key_values is None else past_key_values
        places = None if input_ids is None else input_ids == self.config.image_token_id  # [B, T]
        if places is not None and (images or (places.any() and not _is_continued(cache))):
            inputs_embeds = _insert_image_tokens(inputs_embeds, places, images)
        if position_ids is None and cache is None and attention_mask is not None and attention_mask.ndim == 2:
            # padding on the left shifts no position
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)
        kwargs["inputs_embeds"] = inputs_embeds
        kwargs["attention_mask"] = attention_mask
        kwargs["position_ids"] = position_ids
        with self._second_look(images, places):
            yield kwargs

    def _encoded_images(
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
    def _second_look(self, images: list[EncodedImage], places: Tensor | None) -> Iterator[None]:
        """Inside the context, a look at the images follows the language model's layers in
        `config.sva_layers`; nothing follows them where there are no images."""
        # A part of a prompt may hold no more of an image than the newline of a row, and so no cell.
        has_cells = any(bool(image.cells.any()) for image in images)
        if not has_cells or not self.config.sva_layers:
            yield
            return
        cells = torch.cat([image.cells for image in images])
        windows = VisionWindows.join([image.windows for image in images])
        rows = places.flatten().nonzero().flatten()[cells.to(places.device)]  # in the flattened [B * T]
        layers = decoder_layers(self.language_model)
        hooks = []
        for sampler, number in zip(self.vision_sampler_layers, self.config.sva_layers, strict=True):
            look = _second_look_hook(sampler, windows, rows)
            hooks.append(layers[number].register_forward_hook(look))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def decoder_layers(language_model: nn.Module) -> nn.ModuleList:
    """Find the layers of a language model, whatever its class calls them.

    Raises UserError where there is not exactly one list of as many layers as the config says.
    """
    count = language_model.config.get_text_config().num_hidden_layers
    found = []
    for child in language_model.get_decoder().children():
        if isinstance(child, nn.ModuleList) and len(child) == count:
            found.append(child)
    if len(found) != 1:
        raise UserError(
            f"{type(language_model).__name__} has no single list of {count} layers, so vision layers have no "
            "place in it; set num_sva_layers=0"
        )
    return found[0]


def _is_continued(cache: Any) -> bool:
    """Whether the beginning of a text has been read already.

    An image's token that comes later, without an image, is a token like any other.
    """
    return cache is not None and int(cache.get_seq_length()) > 0


def _second_look_hook(
    sampler: VisionCrossAttentionLayer, windows: VisionWindows, rows: Tensor
) -> Callable[..., Any]:
    """A forward hook that updates the states `[B, T, D_h]` behind a layer at the places `rows`
    `[N]` of the flattened `[B * T]`."""

    def look(module: nn.Module, args: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        flat = states.flatten(0, 1)
        own_rows = rows.to(states.device)
        updated = sampler(flat[own_rows], windows.to(states.device)).to(flat)
        states = flat.index_copy(0, own_rows, updated).view_as(states)
        return (states, *output[1:]) if isinstance(output, tuple) else states

    return look


def _insert_image_tokens(inputs_embeds: Tensor, places: Tensor, images: Sequence[EncodedImage]) -> Tensor:
    """Replace the embeddings `[B, T, D_h]` at the `[B, T]` places with the images' tokens, in order.

    Raises UserError where there are not as many places as tokens.
    """
    counts = [len(image) for image in images]
    if int(places.sum()) != sum(counts):
        raise UserError(
            f"the text has {int(places.sum())} places for image tokens and {len(images)} images have "
            f"{sum(counts)} ({', '.join(map(str, counts)) or 'none'}); make text and images with one call of "
            "the processor, one <image> for each image, and truncate no image"
        )
    tokens = torch.cat([image.tokens for image in images]).to(inputs_embeds.device, inputs_embeds.dtype)
    return inputs_embeds.masked_scatter(places[..., None].to(inputs_embeds.device), tokens)
