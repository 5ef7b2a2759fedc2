"""A fused model over packed matrices, with transformers' `generate`."""

import copy
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from ..configuration_t5fusion import T5FusionConfig
from ..modeling_t5fusion import PlaceholderLogitsMixin, T5WithFusion
from .decoder_cache import MEMORY, Cache
from .features import Features
from .greedy import can_decode, decode_greedily
from .packed_decoder import PackedDecoder
from .packed_encoder import PackedEncoder
from .packed_layers import Packing

# Arguments of `generate`, or fields of its config, that need something that an engine lacks: other models, attentions,
# hidden states, masks of the decoder, caches that can be cropped.
REFUSED = (
    "assistant_model",
    "cache_implementation",
    "custom_generate",
    "decoder_attention_mask",
    "dola_layers",
    "encoder_outputs",
    "guidance_scale",
    "negative_prompt_ids",
    "output_attentions",
    "output_hidden_states",
    "past_key_values",
    "penalty_alpha",
    "prefill_chunk_size",
    "prompt_lookup_num_tokens",
)


class PackedT5(PlaceholderLogitsMixin, PreTrainedModel, GenerationMixin):
    """A fused model that only generates, on the CPU. `load_engine` makes it.

    `generate` takes the arguments of transformers' `generate`, except those in `REFUSED`, and returns the same types.
    It decodes greedily, with beams or by sampling, with any logits processor. In bf16 and int8, some tokens differ.

    Args:
        model: The fused model. An adapter must be merged.
        precision: "fp32", "bf16" or "int8", the precision of its matrices.
        features: What the processor can do.

    Raises:
        ValueError: A matrix of the model is quantised, or has a bias.
    """

    config_class = T5FusionConfig
    main_input_name = "input_ids"
    device = torch.device("cpu")  # transformers reads device and dtype from parameters. This class has none.
    dtype = torch.float32

    @torch.no_grad()
    def __init__(self, model: T5WithFusion, precision: str, features: Features):
        config = copy.deepcopy(model.config)
        config._attn_implementation = "eager"  # transformers checks that the class supports what is set here.
        super().__init__(config)
        self.engine, self.generation_config = precision, copy.deepcopy(model.generation_config)
        packing = Packing(precision, features)
        self.encoder = EncoderWithMemory(model, packing)
        scale = model.config.d_model**-0.5 if model.config.scale_decoder_outputs else 1.0
        embeddings = self.encoder.embedder.embed_tokens.weight.float()  # T5's encoder and decoder share them.
        self.packed_decoder = PackedDecoder(model.decoder, model.lm_head, embeddings, scale, packing)
        self.eval()

    def get_encoder(self, *args: Any, **kwargs: Any) -> "EncoderWithMemory":
        """Return the encoder, which transformers' `generate` runs first."""
        return self.encoder

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate as [`~transformers.GenerationMixin.generate`] does.

        Raises:
            ValueError: An argument is in `REFUSED`, or transformers refuses it.
        """
        config = kwargs.get("generation_config") or (args[1] if len(args) > 1 else None) or self.generation_config
        for name in REFUSED:
            value = kwargs[name] if name in kwargs else getattr(config, name, None)
            if value is not None and value is not False:
                raise ValueError(f"the engine {self.engine} has no `{name}`. Leave it out, or use the engine torch.")
        return super().generate(*args, **kwargs | {"past_key_values": Cache()})

    def _sample(self, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Decode greedily or sample. `generate` calls it."""
        if can_decode(*args, **kwargs):
            return decode_greedily(self.packed_decoder, input_ids, *args, **kwargs)
        return super()._sample(input_ids, *args, **kwargs)

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        decoder_input_ids: Any = None,
        encoder_outputs: Any = None,
        past_key_values: Any = None,
        inputs_embeds: Any = None,
        lexical_embeds: Any = None,
        use_cache: Any = None,
        cache_position: Any = None,
        return_dict: Any = None,
        output_attentions: Any = None,
        output_hidden_states: Any = None,
    ) -> Seq2SeqLMOutput:
        """Compute the logits of the next tokens.

        Args:
            input_ids, attention_mask, inputs_embeds, lexical_embeds: As in `T5WithFusion`. Not used if
                `encoder_outputs` are given.
            decoder_input_ids: int64 (batch, length). They may begin with the tokens that are in `past_key_values`.
            encoder_outputs: The output of `self.encoder`, if it has been computed.
            past_key_values: The [`Cache`] of the earlier tokens.
            Others: Ignored.

        Returns:
            `logits`, float32 (batch, new tokens, vocabulary), and the cache.
        """
        if encoder_outputs is None:
            encoder_outputs = self.encoder(input_ids, attention_mask, inputs_embeds, lexical_embeds)
        cache = past_key_values if past_key_values is not None else Cache()
        if cache.memory is None:
            memory = encoder_outputs[MEMORY]
            cache.start(memory, len(decoder_input_ids) // len(memory))
        new = decoder_input_ids
        if new.shape[1] > 1:  # These are all tokens, or the decoder's prompt.
            new = new[:, cache.length :]
        logits = [self.packed_decoder.step(tokens, cache) for tokens in new.unbind(1)]
        return Seq2SeqLMOutput(logits=torch.stack(logits, 1), past_key_values=cache)


class EncoderWithMemory(nn.Module):
    """The encoder. Its output also holds the memory that the decoder reads.

    Args:
        model: The fused model.
        packing: Packs the matrices.
    """

    main_input_name = "input_ids"

    def __init__(self, model: T5WithFusion, packing: Packing):
        super().__init__()
        # Only `embed` of the model's encoder is used, with its checks. So the encoder's blocks are not copied.
        self.embedder = copy.copy(model.encoder)
        self.embedder._modules = copy.deepcopy(
            {name: model.encoder._modules[name] for name in ("embed_tokens", "fusion")}
        )
        self.packed = PackedEncoder(model.encoder, model.decoder, packing)

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        inputs_embeds: Any = None,
        lexical_embeds: Any = None,
        output_attentions: Any = None,
        output_hidden_states: Any = None,
        return_dict: Any = None,
    ) -> BaseModelOutput:
        """Return `last_hidden_state`, float32 (batch, length, d_model), and the decoder's memory.

        Raises:
            ValueError: Vectors and placeholders do not match (see `LexicalEncoder.embed`).
        """
        embeddings = self.embedder.embed(input_ids, inputs_embeds, lexical_embeds)
        hidden, memory = self.packed(embeddings, attention_mask)
        output = BaseModelOutput(last_hidden_state=hidden)
        output[MEMORY] = memory  # `generate` repeats each tensor of this output for its beams, but not this object.
        return output
