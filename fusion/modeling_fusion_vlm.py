"""A language model that reads the tokens of several vision encoders, and that may look into the
encoders again between its layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
)
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
)

from fusion.configuration_fusion import FusionVlmConfig
from fusion.connectors.base import Connector
from fusion.connectors.cross_attention import VisionCrossAttentionLayer
from fusion.image_reading import ReadsImages
from fusion.modeling_fused_vision import FusedPreTrainedModel, FusedVisionModel, Pixels
from fusion.supervised_loss import supervised_loss
from vision_core.errors import UserError


class FusionVlmModel(ReadsImages, nn.Module):
    """A vision-language model without its head: what transformers calls the base model.

    It is made from the parts of the model with a head when it is asked for. The parts stay in that
    model, under the names that they have there.
    """

    def __init__(self, model_with_head: FusionVlmForConditionalGeneration) -> None:
        super().__init__()
        self.config = model_with_head.config
        self.vision_model = model_with_head.vision_model
        self.vision_sampler_layers = model_with_head.vision_sampler_layers
        self.language_model = model_with_head.get_decoder()

    def forward(self, input_ids: Tensor | None = None, **inputs: Any) -> BaseModelOutputWithPast:
        """Return `last_hidden_state` `[B, T, D_h]`, from which the head makes logits.

        inputs: as the model with a head takes them, without labels.
        """
        with self.language_model_inputs(input_ids, **inputs) as prepared:
            return self.language_model(**prepared)


class ForbiddenToken(LogitsProcessor):
    """Keeps one token from being generated. A vocabulary without the token, such as an assistant's,
    stays as it is."""

    def __init__(self, token_id: int) -> None:
        self.token = slice(token_id, token_id + 1)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Set the token's score to minus infinity; scores: `[..., V]`."""
        scores = scores.clone()
        scores[..., self.token] = float("-inf")
        return scores


class FusionVlmForConditionalGeneration(ReadsImages, FusedPreTrainedModel, GenerationMixin):
    """A fused vision model and any causal language model of transformers.

    Where a token of `input_ids` is `config.image_token_id`, its embedding is replaced by the next
    token of the next image. After the layers `config.sva_layers` of the language model, the states
    at image positions, except newlines, are updated from the windows of their place in all encoders
    (equation 1 of Cambrian-1, see `fusion.connectors.cross_attention`). The model keeps nothing
    about images between calls.

    vision_model, language_model: models to take as they are; by default new ones are made from the
    config.
    """

    config: FusionVlmConfig
    config_class = FusionVlmConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    _skip_keys_device_placement = ["past_key_values"]

    def __init__(
        self,
        config: FusionVlmConfig,
        vision_model: FusedVisionModel | None = None,
        language_model: PreTrainedModel | None = None,
    ) -> None:
        super().__init__(config)
        self.vision_model = vision_model or FusedVisionModel(config.vision_config)
        self.language_model = language_model or AutoModelForCausalLM.from_config(
            config.text_config, trust_remote_code=False
        )
        _check_hidden_sizes(config)
        self.vision_sampler_layers = nn.ModuleList()
        for _ in config.sva_layers:
            self.vision_sampler_layers.append(_make_sampler_layer(config, self.vision_model.connector))
        self.post_init()

    @property
    def model(self) -> FusionVlmModel:
        """The `base_model` of transformers: this model without its head."""
        return FusionVlmModel(self)

    # What transformers asks a model for.

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

    def _supports_logits_to_keep(self) -> bool:
        return self.language_model._supports_logits_to_keep()

    # Reading and writing.

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Pixels | None = None,
        image_sizes: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        supervised_only: bool = False,
        vision_maps: Sequence[Tensor] | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Run the language model, which gets all `kwargs`, on texts with images.

        Args:
            input_ids: `[B, T]`, with `image_token_id` for every token of every image.
            pixel_values, image_sizes: of all images of the batch in the order of their places in
                it; what the processor returns, see `FusedVisionModel.encode`.
            mm_encoder_outputs: `{"image": get_image_features(...)}` in place of them.
            vision_maps: in place of pixel_values, `vision_model.maps` of them, where frozen
                encoders need not run again.
            labels: `[B, T]`, `fusion.labels.LABEL_IGNORED` (-100) where no loss is wanted. The loss
                is the language model's own.
            logits_to_keep: the number of last positions, or the positions, whose logits are wanted;
                0 for all.
            supervised_only: compute the same loss without logits of positions that have no label
                (see `supervised_loss`); no logits are returned.

        Raises UserError where images and places for them do not match.
        """
        with self.language_model_inputs(
            input_ids=input_ids,
            pixel_values=pixel_values,
            image_sizes=image_sizes,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            vision_maps=vision_maps,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        ) as inputs:
            if supervised_only and labels is not None:
                return CausalLMOutputWithPast(loss=supervised_loss(self.language_model, labels, **inputs))
            if isinstance(logits_to_keep, Tensor) or logits_to_keep:  # not every language model knows it
                inputs["logits_to_keep"] = logits_to_keep
            return self.language_model(labels=labels, **inputs)

    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generate as in transformers, but never an image's token, which is not a word.

        Raises UserError for a batch that is padded on the right, behind which nothing can be
        written, and for a fused model as the assistant of another.
        """
        if generation_config is not None and generation_config.is_assistant:
            raise UserError(
                "an assistant is given no images, so a fused model cannot be one; "
                "pass assistant_model=its.language_model, or prompt_lookup_num_tokens"
            )
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 2 and not mask[:, -1].all():
            raise UserError(
                "generate needs padding on the left: the attention_mask ends with 0; "
                "set processor.tokenizer.padding_side = 'left'"
            )
        processors = LogitsProcessorList(
            [ForbiddenToken(self.config.image_token_id), *(logits_processor or [])]
        )
        return super().generate(inputs, generation_config, processors, **kwargs)


def _check_hidden_sizes(config: FusionVlmConfig) -> None:
    token_size = config.vision_config.hidden_size
    hidden_size = config.text_config.hidden_size
    if token_size != hidden_size:
        raise UserError(
            f"the fused encoder makes tokens of {token_size} channels and the language model reads "
            f"{hidden_size}; fuse the encoders with hidden_size={hidden_size}"
        )


def _make_sampler_layer(config: FusionVlmConfig, connector: Connector) -> VisionCrossAttentionLayer:
    """A layer that looks into the encoders again, with the sizes of the connector `sva`."""
    return VisionCrossAttentionLayer(
        query_width=config.text_config.hidden_size,
        width=connector.width,
        num_heads=connector.num_heads,
        window_sizes=connector.window_sizes(connector.grid),
        zero_init_output=config.zero_init_sva,
        shared_norms=connector.shared_norms,
    )
