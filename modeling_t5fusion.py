"""T5 that reads dense vectors beside the text of a row.

A row's token ids hold placeholders, `<lexical>`, for its vectors. Each vector is projected to one or more token
embeddings, which replace the placeholders' embeddings in the encoder's input. A model may read several kinds of
vectors, each with a width and a placeholder of its own. (Here, "kind" always means a kind of vectors.)

The word "lexical" in `lexical_embeds`, `lexical_dim` and other names is historical. The vectors may stand for anything:
a text, an image, a user, a price.

`LexicalFusion` projects the vectors, `LexicalEncoder` puts them in place, and `T5WithFusion` is the whole model.
`checking_t5fusion.py` checks the model's inputs, `loading_t5fusion.py` loads the model, `saving_t5fusion.py` saves it,
and `fitting_t5fusion.py` fits the fusion layer to training rows before training.
"""

import os
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, GenerationMixin, T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5LayerNorm, T5Stack
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, logging

from .checking_t5fusion import LexicalEmbeds, check_batch, check_token_id, vectors_by_kind
from .configuration_t5fusion import T5FusionConfig
from .fast_t5fusion import fast_step, forget_copies, use_training_gelu
from .fitting_t5fusion import FittingMixin
from .kinds_t5fusion import VectorKind, token_of
from .loading_t5fusion import FusedLoadingMixin, FusedModel, NameOrPath
from .naming_t5fusion import FusedName, resolve_embedded
from .packing_t5fusion import PackedMasks, packed_masks, restart_rows
from .rows_t5fusion import IGNORED
from .saving_t5fusion import SavingMixin
from .scaling_t5fusion import VectorScale

if TYPE_CHECKING:
    # transformers finds the code files of a saved model by the imports in this file's text, and copies or downloads
    # them. transformers 5.0 does not follow the imports of those files in turn. So the root files that are not imported
    # above are imported here. These imports never run.
    from .arguments_t5fusion import read_vectors  # noqa: F401
    from .blocks_t5fusion import RowBlock  # noqa: F401
    from .collating_t5fusion import DataCollatorWithFusion  # noqa: F401
    from .pipeline_t5fusion import T5FusionPipeline  # noqa: F401
    from .processing_t5fusion import T5FusionProcessor  # noqa: F401
    from .samples_t5fusion import LoadedWeights  # noqa: F401
    from .tokenizing_t5fusion import tokenize  # noqa: F401

    # peft is optional. transformers refuses to load remote code that imports a missing package outside a `try`.
    try:  # noqa: SIM105
        from peft import LoraConfig
    except ImportError:
        pass

logger = logging.get_logger(__name__)


class VectorProjector(nn.Module):
    """Projection of a kind's vectors, float (..., vectors, dim), to token embeddings (..., vectors * tokens, d_model).

    Raw numbers are scaled first (`VectorScale`); vectors of an encoder are not. T5's token embeddings are large (root
    mean square of 1 and above), while the projection of a unit vector is small (about 0.05). So the projection is
    normalised to the root mean square of the base model's embeddings, which is the initial value of `norm.weight`.
    """

    def __init__(self, kind: VectorKind, config: T5FusionConfig) -> None:
        super().__init__()
        self.kind = kind
        self.scale = VectorScale(kind) if kind.scale else nn.Identity()
        width = kind.tokens * config.d_model
        if kind.projector == "mlp":
            hidden = kind.hidden or config.d_model
            layers = nn.Linear(kind.dim, hidden), nn.GELU(), nn.Dropout(kind.dropout), nn.Linear(hidden, width)
            self.projection: Any = nn.Sequential(*layers)
        else:
            self.projection = nn.Linear(kind.dim, width)
        self.norm = T5LayerNorm(config.d_model, eps=config.layer_norm_epsilon)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return vectors as token embeddings in the dtype of the norm's weight."""
        # The projection's own dtype cannot be used: a quantised projection has an integer dtype.
        projected = self.projection(self.scale(vectors).to(self.norm.weight.dtype))
        return self.norm(projected.reshape(*vectors.shape[:-2], -1, self.norm.weight.shape[0]))

    @property
    def last_layer(self) -> nn.Linear:
        """The linear layer whose outputs are token embeddings."""
        last: Any = self.projection[-1] if isinstance(self.projection, nn.Sequential) else self.projection
        return last

    def last_inputs(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return the inputs of the last layer, float (..., input_width), for vectors, float (..., dim). No dropout."""
        scaled = self.scale(vectors.to(self.norm.weight.device))
        if not isinstance(self.projection, nn.Sequential):
            return scaled
        first_layer: Any = self.projection[0]
        activation: Any = self.projection[1]
        return activation(first_layer(scaled.to(first_layer.weight)))

    def initial_bias(self) -> torch.Tensor:
        """Return the initial bias of the last layer, float32 (outputs,): zeros if the kind has no scale.

        The norm layer discards the magnitude of a projection: without a bias, x and 2x would become the same embedding.
        With a bias as large as the projection of a typical vector, the magnitude of a vector changes the direction of
        the sum.
        """
        outputs = self.last_layer.bias.shape[0]
        if isinstance(self.scale, VectorScale):
            return initial_projection(torch.Size([outputs, 1]), seed=1)[:, 0]
        return torch.zeros(outputs, dtype=torch.float32, device="cpu")

    @torch.no_grad()
    def reset_parameters(self, token_embeddings: torch.Tensor) -> None:
        """Set the initial weights. They depend only on the sizes and the base model, so they repeat bit for bit.

        Args:
            token_embeddings: The base model's embedding table, float (rows, d_model).
        """
        if isinstance(self.scale, VectorScale):
            self.scale.reset()
        for layer in self.projection.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.copy_(initial_projection(layer.weight.shape))
                layer.bias.zero_()
        self.last_layer.bias.copy_(self.initial_bias())
        # Keep three digits, because the last bits of a sum over millions of numbers differ between machines.
        self.norm.weight.fill_(float(f"{root_mean_square(token_embeddings):.3g}"))


class LexicalFusion(VectorProjector):
    """The fusion layer: a projector for each kind of vectors.

    The first kind's projector is the layer itself, so that its weights have the same names for any number of kinds.
    """

    fit_was_tried = False  # whether `fit_fusion` has read rows, even if their vectors explained nothing

    def __init__(self, config: T5FusionConfig) -> None:
        (first_name, first), *others = config.kinds.items()
        super().__init__(first, config)
        self.first_kind = first_name
        self.others: Any = nn.ModuleDict({f"kind_{name}": VectorProjector(kind, config) for name, kind in others})

    def forward(self, lexical_embeds: torch.Tensor, kind: str | None = None) -> torch.Tensor:
        """Return vectors as token embeddings in the dtype of the norm's weight.

        Args:
            lexical_embeds: Vectors of one kind, float (..., vectors, dim).
            kind: Name of the kind; None for the first.

        Returns:
            Float (..., vectors * tokens, d_model).
        """
        if kind in (None, self.first_kind):
            return super().forward(lexical_embeds)
        return self.others[f"kind_{kind}"](lexical_embeds)

    def projector(self, kind: str) -> VectorProjector:
        """Return the projector of a kind."""
        projector: Any = self if kind == self.first_kind else self.others[f"kind_{kind}"]
        return projector

    def reset_parameters(self, token_embeddings: torch.Tensor) -> None:
        """Set the initial weights of each kind's projector; see `VectorProjector.reset_parameters`."""
        super().reset_parameters(token_embeddings)
        for kind in self.others:
            self.others[kind].reset_parameters(token_embeddings)


def root_mean_square(table: torch.Tensor) -> float:
    """Return the root mean square of an embedding table, float (rows, d_model)."""
    # A table in float64 is twice as large as in float32. So only some of its rows are in float64 at a time.
    squares = sum(rows.double().square().sum().item() for rows in table.split(1024))
    return float((squares / table.numel()) ** 0.5)


def initial_projection(shape: torch.Size, seed: int = 0) -> torch.Tensor:
    """Return the initial weight of a projection's linear layer, float32 of `shape`, which is (outputs, inputs).

    The output for a vector then has about the root mean square of the vector itself.
    """
    # Normal random numbers, and all random numbers of a GPU, differ between machines. Uniform random numbers of a CPU
    # generator do not. The dtype and the device are explicit, because the process may have other defaults.
    generator = torch.Generator("cpu").manual_seed(seed)
    noise = torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu") - 0.5
    return noise * (12 / shape[1]) ** 0.5


class T5InitMixin:
    """Random initial weights as in T5.

    T5 initialises the matrices of an attention or feed-forward layer when `_init_weights` gets that layer. In custom
    code, transformers skips modules that have no weights of their own, such as these layers, and their matrices would
    get its general initial weights. So this class does not pass the flag `is_custom_code` on.
    """

    def _initialize_weights(self, module: nn.Module, *is_custom_code: Any) -> None:
        super()._initialize_weights(module)  # type: ignore[misc]

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise a module's weights, and the numbers of a scale, which are arbitrary after the meta device."""
        super()._init_weights(module)  # type: ignore[misc]
        # transformers marks what it has loaded.
        is_loaded = all(getattr(buffer, "_is_hf_initialized", False) for buffer in module.buffers(recurse=False))
        if isinstance(module, VectorScale) and not is_loaded:
            module.reset()


class LexicalEncoder(T5InitMixin, T5Stack):
    """T5's encoder with a fusion layer before its first block."""

    def __init__(self, config: T5FusionConfig) -> None:
        super().__init__(config)
        self.fusion = LexicalFusion(config)
        self.kinds = config.kinds

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        lexical_embeds: LexicalEmbeds | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the encoder; see `embed` for the inputs. Returns what [`~transformers.models.t5.T5Stack`] returns.

        Raises:
            ValueError: The inputs are wrong (see `embed`), or are packed rows for `generate`.
        """
        if kwargs.pop("row_ids", None) is not None or kwargs.pop("target_row_ids", None) is not None:
            raise ValueError(
                "the batch holds packed rows, from which nothing can be generated. Use a collator without "
                "`packing=True`."
            )
        # `T5WithFusion.forward` calls `embed` itself, and passes only the result, as `inputs_embeds`.
        has_been_embedded = input_ids is None and lexical_embeds is None
        # If both `input_ids` and `inputs_embeds` are given, or neither is, T5 raises its own error.
        if (input_ids is None) != (inputs_embeds is None) and not has_been_embedded:
            inputs_embeds = self.embed(input_ids, inputs_embeds, lexical_embeds)
            input_ids = None
        return super().forward(
            input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **kwargs
        )

    def embed(
        self,
        input_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        lexical_embeds: LexicalEmbeds | None = None,
    ) -> torch.Tensor:
        """Return token embeddings, float (batch, length, d_model), with projected vectors in place of placeholders.

        With gradients enabled, a batch without vectors gives the fusion layer gradients of zero, because some callers
        (DistributedDataParallel, PEFT's OSF) wait for the gradient of every weight.

        Args:
            input_ids: int64 (batch, length). Pass either these or `inputs_embeds`.
            inputs_embeds: Float (batch, length, d_model). If vectors of a kind are given, positions that equal the
                embedding of its placeholder are placeholders.
            lexical_embeds: Float (batch, dim) or (batch, vectors, dim); with several kinds, a dict of these by the name
                of the kind. A row with fewer placeholders than vectors uses its first vectors; the others must be zero,
                that is, padding.

        Raises:
            ValueError: Vectors and placeholders do not match (on a GPU, this is a RuntimeError), or the vectors are
                not floating point, on a different device, or of the wrong width. The message says what to do.
        """
        vectors = vectors_by_kind(lexical_embeds, self.kinds)
        placeholder_masks, inputs_embeds = self._masks_and_embeddings(input_ids, inputs_embeds, vectors)
        vectors = check_batch(vectors, placeholder_masks, self.kinds, self.config.lexical_token_id)
        for name, kind in self.kinds.items():
            given = vectors.get(name)
            if given is None or given.shape[1] == 0:
                if not torch.is_grad_enabled():
                    continue
                given = inputs_embeds.new_zeros(inputs_embeds.shape[0], 1, kind.dim)
            # The fusion layer may have a different dtype, and be on a different device, than the token embeddings.
            projected = self.fusion(given, name).to(inputs_embeds)
            inputs_embeds = put_in_place(inputs_embeds, placeholder_masks[name], projected)
        return inputs_embeds

    def _masks_and_embeddings(
        self, input_ids: torch.Tensor | None, inputs_embeds: Any, vectors: dict[str, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Check the rows' ids, and return masks of each kind's placeholders, and the token embeddings of the rows.

        Returns:
            A mask for each kind, bool (batch, length), and the embeddings, float (batch, length, d_model).

        Raises:
            ValueError: The tokenizer of the rows has a different id for the placeholder; or `inputs_embeds` are given,
                and the placeholder has no row in the embedding table that would show where it stands.
        """
        first_id = self.config.lexical_token_id
        if input_ids is not None:
            check_token_id(input_ids, vectors.get(self.fusion.first_kind), first_id, self.config.pad_token_id)
            placeholder_masks = {name: input_ids == first_id + position for position, name in enumerate(self.kinds)}
            # A placeholder's id may lie past the embedding table. So token 0 is looked up in its place.
            is_placeholder = are_placeholders(input_ids, first_id, len(self.kinds))
            return placeholder_masks, self.embed_tokens(input_ids.masked_fill(is_placeholder, 0))
        placeholder_masks = {}
        for position, name in enumerate(self.kinds):
            if name in vectors:
                placeholder_masks[name] = (inputs_embeds == self._placeholder_embedding(name, position)).all(-1)
            else:
                placeholder_masks[name] = torch.zeros(
                    inputs_embeds.shape[:2], dtype=torch.bool, device=inputs_embeds.device
                )
        return placeholder_masks, inputs_embeds

    def _placeholder_embedding(self, kind: str, position: int) -> torch.Tensor:
        """Return the embedding of a kind's placeholder, float (d_model,).

        Raises:
            ValueError: Its id lies past the embedding table.
        """
        token, token_id = token_of(kind, position), self.config.lexical_token_id + position
        rows = self.embed_tokens.weight.shape[0]
        if token_id >= rows:
            raise ValueError(
                f"`inputs_embeds` cannot show where {token} stands, because its id, {token_id}, lies past the "
                f"embedding table of {rows} rows. Pass `input_ids`; or pass the result of "
                "`model.encoder.embed(input_ids, lexical_embeds=...)` as `inputs_embeds`, without `lexical_embeds`."
            )
        return self.embed_tokens.weight[token_id]


def are_placeholders(input_ids: torch.Tensor, first_id: int, kinds: int) -> torch.Tensor:
    """Return which ids are placeholders of any kind, bool in the shape of the ids.

    Args:
        input_ids: int64 (batch, length).
        first_id: Id of the first kind's placeholder. Those of the other kinds follow.
        kinds: The number of kinds.
    """
    return (input_ids >= first_id) & (input_ids < first_id + kinds)


def put_in_place(inputs_embeds: torch.Tensor, is_placeholder: torch.Tensor, projected: torch.Tensor) -> torch.Tensor:
    """Return token embeddings with a row's nth placeholder replaced by its nth projected embedding.

    Args:
        inputs_embeds: Float (batch, length, d_model).
        is_placeholder: Bool (batch, length).
        projected: Float (batch, tokens, d_model), with at least as many tokens as any row has placeholders.
    """
    # Positions without a placeholder get some embedding too. `torch.where` then drops it.
    index = (is_placeholder.cumsum(1) - 1).clamp(0, projected.shape[1] - 1)
    # With `take_along_dim`, torch.export would accept only the sizes of its example.
    by_position = projected.gather(1, index.unsqueeze(-1).expand(-1, -1, projected.shape[-1]))
    return torch.where(is_placeholder.unsqueeze(-1), by_position, inputs_embeds)


class PlaceholderLogitsMixin:
    """Support for placeholder ids in `generate`: there may be no logit for them."""

    config: T5FusionConfig

    def _get_logits_processor(self, *args: Any, encoder_input_ids: Any = None, **kwargs: Any) -> Any:
        """Return the logits processors of `generate`, which get padding ids in place of placeholder ids."""
        # Repetition penalties look up the logits of the input ids. A placeholder past the embedding table has no logit.
        if encoder_input_ids is not None and not encoder_input_ids.is_floating_point():
            is_placeholder = are_placeholders(encoder_input_ids, self.config.lexical_token_id, len(self.config.kinds))
            encoder_input_ids = encoder_input_ids.masked_fill(is_placeholder, self.config.pad_token_id or 0)
        return super()._get_logits_processor(  # type: ignore[misc]
            *args, encoder_input_ids=encoder_input_ids, **kwargs
        )


class T5WithFusion(
    FusedLoadingMixin,
    SavingMixin,
    FittingMixin,
    T5InitMixin,
    PlaceholderLogitsMixin,
    T5ForConditionalGeneration,
    GenerationMixin,
):
    """T5 for conditional generation that reads vectors beside its text.

    Without vectors, it predicts what the plain T5 predicts, bit for bit. (Unless `fast_training` is false, a training
    step on a CPU draws different random numbers for dropout, and bf16 autocast rounds differently.)

    `T5WithFusion("google/flan-t5-small", vectors={"image": 512})` is short for
    `T5WithFusion.from_pretrained("google/flan-t5-small", vectors={"image": 512})`. `T5WithFusion(config)` builds a
    model with random weights.

    Args:
        config: Hub id or folder of a base model, a fused model or an adapter; or a [`T5FusionConfig`].
        *args: Further positional arguments of `from_pretrained`, or of T5's `__init__`.
        **kwargs: With an id or a folder, the keywords of `from_pretrained`: config fields (`lexical_dim`, 384 by
            default; `lexical_token_id`; ...), `dtype`, `device_map`, `revision`, `subfolder`, `token`, `adapter_name`,
            ... With a config, those of T5's `__init__`.

    Raises:
        ValueError: The config is not a `T5FusionConfig`. With an id or a folder, also what `from_pretrained` raises.
        OSError: A file cannot be read; see `from_pretrained`.
    """

    config_class = T5FusionConfig
    encoder: LexicalEncoder
    fused_name: str | None = None  # the name of the model before its embedding table was resized
    fast_training: bool = True  # whether training on a CPU uses the faster functions of `fast_t5fusion.py`
    _keep_in_fp32_modules: Any
    _has_trained_on_vectors = False

    # `config` has a default, because `copy` and `pickle` call this without one.
    def __new__(
        cls: type[FusedModel], config: T5FusionConfig | NameOrPath | None = None, *args: Any, **kwargs: Any
    ) -> FusedModel:
        if isinstance(config, (str, os.PathLike)):
            return cls.from_pretrained(config, *args, **kwargs)
        return super().__new__(cls)  # type: ignore[misc]

    def __init__(self, config: T5FusionConfig | NameOrPath, *args: Any, **kwargs: Any) -> None:
        """Build a model with random weights from a config. The class describes the arguments."""
        if isinstance(config, (str, os.PathLike)):  # `__new__` has loaded the model already.
            return
        if not hasattr(config, "lexical_dim"):
            raise ValueError(
                f"a {type(config).__name__} has no `lexical_dim`; expected a T5FusionConfig. Convert it: "
                "`T5FusionConfig(lexical_dim=384, lexical_token_id=len(tokenizer), **config.to_dict())`."
            )
        super().__init__(config, *args, **kwargs)
        self.encoder = LexicalEncoder(self.encoder.config)
        use_training_gelu(self)
        self._choose_fusion_dtype(is_quantised=getattr(config, "quantization_config", None) is not None)
        # The weights of a base model hold no fusion layer, so transformers must not warn that it is missing.
        if config.architectures != [type(self).__name__]:
            self._keys_to_ignore_on_load_missing = [r"encoder\.fusion\."]
        self.post_init()
        self.register_load_state_dict_pre_hook(_resize_for_adapter)
        if not self.shared.weight.is_meta:
            self.encoder.fusion.reset_parameters(self.shared.weight)

    def _choose_fusion_dtype(self, is_quantised: bool) -> None:
        """Keep the fusion layer in fp32 if the model is quantised or in fp16.

        In fp16, the second step of Adam would turn its weights into NaN.
        """
        if is_quantised or self.encoder.fusion.norm.weight.dtype == torch.float16:
            # The list keeps a loaded fusion layer in fp32. The cast does so for a layer that the checkpoint lacks.
            self._keep_in_fp32_modules = [*self._keep_in_fp32_modules, "encoder.fusion"]
            self.encoder.fusion.float()
        # This list also holds in bf16, and quantisers leave its modules as they are.
        if is_quantised:
            self._keep_in_fp32_modules_strict = ["encoder.fusion"]
        elif any(kind.scale for kind in self.encoder.kinds.values()):
            self._keep_in_fp32_modules_strict = ["scale"]  # each `VectorScale`

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        lexical_embeds: LexicalEmbeds | None = None,
        row_ids: torch.Tensor | None = None,
        target_row_ids: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Any:
        """Run T5 with vectors in the places of the placeholders.

        Arguments that are not listed here are those of [`~transformers.T5ForConditionalGeneration.forward`].

        Args:
            input_ids: int64 (batch, length), with one placeholder for each token that a vector becomes: by default, one
                `<lexical>` per vector (see `config.kinds`).
            lexical_embeds: The vectors, float (batch, dim) or (batch, vectors, dim), or a dict of these by kind; see
                `LexicalEncoder.embed`. They are ignored if `encoder_outputs` are given, which contain them already.
            row_ids: For each token, the number of its row within the sequence, from 1, or 0 for padding: int64 (batch,
                length). `DataCollatorWithFusion(packing=True)` makes them if a sequence holds several rows.
            target_row_ids: The same for each label, int64 (batch, labels). Give both or neither.

        Returns:
            A [`~transformers.modeling_outputs.Seq2SeqLMOutput`], or a tuple with `return_dict=False`.

        Raises:
            ValueError: Vectors and placeholders do not match (see `LexicalEncoder.embed`); the decoder has no input;
                packed rows are used with an attention that cannot keep them apart; or only one of `row_ids` and
                `target_row_ids` is given.
            RuntimeError: On a GPU or in a compiled graph, vectors and placeholders do not match. (On a GPU, the error
                comes with a later call.)
        """
        # The signature names every argument, because the Trainer drops columns that it does not name.
        if all(decoder_input is None for decoder_input in (decoder_input_ids, decoder_inputs_embeds, labels)):
            raise ValueError(
                "neither `decoder_input_ids` nor `labels` were given; expected one of them. With label smoothing, the "
                "Trainer takes the labels out of the batch: use `DataCollatorWithFusion(tokenizer, model=model)`, "
                "which adds `decoder_input_ids`."
            )
        if (row_ids is None) != (target_row_ids is None):
            raise ValueError("only one of `row_ids` and `target_row_ids` was given; expected both, or neither.")
        if encoder_outputs is None and (input_ids is None) != (inputs_embeds is None):
            if self.training and not torch.compiler.is_compiling():
                self._warn_of_unused_vectors(lexical_embeds)
            if self.training and self.config.vector_dropout > 0 and input_ids is not None:
                attention_mask, row_ids = self._drop_vectors(input_ids, attention_mask, row_ids)
            inputs_embeds = self.encoder.embed(input_ids, inputs_embeds, lexical_embeds)
            input_ids = None
        label_tokens_of_step = kwargs.pop("num_items_in_batch", None)  # the Trainer's count for all batches of a step
        if past_key_values is not None:  # transformers 5.24 renames it to `cache` and warns about the old name.
            kwargs["past_key_values"] = past_key_values
        with fast_step(self, self.device):
            if row_ids is not None and target_row_ids is not None:
                masks = self._masks_of_packed(row_ids, target_row_ids)
                if encoder_outputs is None:
                    encoder_outputs = self.encoder(
                        inputs_embeds=inputs_embeds, attention_mask=masks.encoder, **_requested_outputs(kwargs)
                    )
                inputs_embeds, attention_mask, decoder_attention_mask = None, masks.cross, masks.decoder
                if decoder_input_ids is None and labels is not None:
                    decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels, target_row_ids)
            output = super().forward(
                input_ids=input_ids,
                attention_mask=attention_mask,
                decoder_input_ids=decoder_input_ids,
                decoder_attention_mask=decoder_attention_mask,
                encoder_outputs=encoder_outputs,
                inputs_embeds=inputs_embeds,
                decoder_inputs_embeds=decoder_inputs_embeds,
                labels=labels,
                use_cache=use_cache,
                **kwargs,
            )
        if label_tokens_of_step is not None and labels is not None:
            return _scale_loss(output, (labels != IGNORED).sum() / label_tokens_of_step)
        return output

    def _drop_vectors(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, row_ids: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return `attention_mask` and `row_ids` with the placeholders of some rows hidden.

        Each row is chosen with the probability `config.vector_dropout`. If nothing attends to a placeholder in front of
        the text, the model predicts as if it were absent, because T5 reads only the distances between tokens. Inside a
        text, a hidden placeholder still adds to the distance between its neighbours.

        Args:
            input_ids: int64 (batch, length).
            attention_mask: int64 (batch, length); None for ones.
            row_ids: See `forward`; None if each sequence is one row.
        """
        is_placeholder = are_placeholders(input_ids, self.config.lexical_token_id, len(self.encoder.kinds))
        rows = torch.zeros_like(input_ids) if row_ids is None else row_ids
        # A sequence holds at most as many rows as tokens. Each row gets a random number.
        draws = torch.rand(input_ids.shape[0], input_ids.shape[1] + 1, device=input_ids.device)
        is_dropped = is_placeholder & (draws.gather(1, rows) < self.config.vector_dropout)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return mask.masked_fill(is_dropped, 0), None if row_ids is None else row_ids.masked_fill(is_dropped, 0)

    def _masks_of_packed(self, row_ids: torch.Tensor, target_row_ids: torch.Tensor) -> PackedMasks:
        """Return the masks for sequences that hold several rows.

        Raises:
            ValueError: The model's attention takes no such masks.
        """
        if self.config._attn_implementation not in ("eager", "sdpa"):
            raise ValueError(
                f"the model's attention is {self.config._attn_implementation!r}, which cannot keep packed rows apart; "
                "expected 'sdpa' or 'eager'. Set `attn_implementation`, or leave out the collator's `packing`."
            )
        return packed_masks(row_ids, target_row_ids, self.dtype)

    def prepare_decoder_input_ids_from_labels(
        self, labels: torch.Tensor, target_row_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the inputs of the decoder: the labels shifted right. Every row begins with the start token.

        Args:
            labels: int64 (batch, labels).
            target_row_ids: For each label, the number of its row within the sequence, int64 (batch, labels); None if
                each sequence is one row.
        """
        ids: torch.Tensor = self._shift_right(labels)
        return ids if target_row_ids is None else restart_rows(ids, target_row_ids, self.config.decoder_start_token_id)

    def train(self, mode: bool = True) -> Any:
        """Set training or evaluation mode. Evaluation frees the copies of weights that fast training keeps."""
        if not mode:
            forget_copies()
        return super().train(mode)

    def _warn_of_unused_vectors(self, lexical_embeds: LexicalEmbeds | None) -> None:
        """Warn once if training gives the model no vectors, or leaves the fusion layer frozen."""
        if lexical_embeds is None:
            if not self._has_trained_on_vectors:
                logger.warning_once(
                    "This training batch has no vectors, so the fused model trains as the plain T5. Vectors are read "
                    "from the column `lexical_embeds`; the Trainer drops a column of a different name. Use "
                    "DataCollatorWithFusion, which passes the vectors on."
                )
            return
        self._has_trained_on_vectors = True
        adapters = getattr(self, "peft_config", {}).values()
        if any(getattr(adapter, "modules_to_save", None) == [] for adapter in adapters):
            return  # The user froze the layer on purpose.
        parameters = list(self.encoder.fusion.parameters())  # The list is empty in DataParallel's replicas and in FSDP.
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            logger.warning_once(
                "The fusion layer is frozen while the rest trains, so the vectors have little effect. To train it too, "
                "`import t5fusion` before you attach the adapter, or set `modules_to_save=['fusion']` in the adapter's "
                "config. To freeze it on purpose, set `modules_to_save=[]`."
            )

    def lora_config(self, **overrides: Any) -> "LoraConfig":
        """Return the recommended `peft.LoraConfig`: LoRA on every matrix of the blocks, and the whole fusion layer.

        Rank and alpha are 32, and dropout is 0.05. PEFT's own default for T5, which adapts only the matrices q and v,
        did worse (docs/method.md of the package t5fusion).

        Args:
            **overrides: Fields of `peft.LoraConfig` that replace these, or add to them.

        Raises:
            ImportError: peft is not installed.
        """
        try:
            from peft import LoraConfig, TaskType
        except ImportError as error:
            raise ImportError(
                "`lora_config` makes a config of peft, and peft is not installed. Type `pip install peft`."
            ) from error
        feed_forward = ["wi_0", "wi_1"] if self.config.is_gated_act else ["wi"]
        recommended: dict[str, Any] = {
            "task_type": TaskType.SEQ_2_SEQ_LM,
            "r": 32,
            "lora_alpha": 32,
            "lora_dropout": 0.05,
            "target_modules": ["q", "k", "v", "o", *feed_forward, "wo"],
            "bias": "none",
            "modules_to_save": ["fusion"],
        }
        return LoraConfig(**recommended | overrides)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether any part recomputes its activations. PEFT reads this name, which transformers 5.23 deprecates."""
        return any(getattr(module, "gradient_checkpointing", False) for module in self.modules())

    def get_expanded_tied_weights_keys(self, *args: Any, **kwargs: Any) -> Any:
        """Return which weights are tied: each name, with the name of the weight that it shares.

        The head is among them only if the decoder's outputs are scaled. In T5's config, that marks a tied head.
        """
        tied = super().get_expanded_tied_weights_keys(*args, **kwargs)
        if not self.config.scale_decoder_outputs:
            tied.pop("lm_head.weight", None)
        return tied

    def tie_weights(self, missing_keys: Any = None, recompute_mapping: bool = True) -> None:
        """Tie weights as transformers does, and the head too if the checkpoint has none.

        An mT5 may have a tied head. Its checkpoint then holds no head, and its config does not tell, because an mT5
        never scales the decoder's outputs.
        """
        if missing_keys is not None and "lm_head.weight" in missing_keys:
            self.all_tied_weights_keys["lm_head.weight"] = "shared.weight"
        # A call after a resize asks to recompute the mapping. That would forget the tied head of an mT5.
        super().tie_weights(missing_keys=missing_keys, recompute_mapping=False)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """Resize the embedding table as transformers does. A resize for the placeholder alone does nothing.

        Args:
            *args: Positional arguments of [`~transformers.PreTrainedModel.resize_token_embeddings`], first the new
                number of rows.
            **kwargs: Its keywords.

        Returns:
            The embedding layer.
        """
        rows = self.shared.num_embeddings
        new_rows = args[0] if args else kwargs.get("new_num_tokens")
        # AutoPeftModel asks for a row per token of the tokenizer, but placeholders need none.
        if new_rows == rows + len(self.config.kinds) and self.config.lexical_token_id == rows:
            return self.get_input_embeddings()
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        if embeddings.num_embeddings != rows:
            # PEFT looks up the base model by its name to decide whether to save the table as well, so give it the plain
            # name. The package t5fusion writes the fused name when it saves an adapter (hooks/adapter_class.py).
            recorded = FusedName.parse(self.name_or_path)
            # A plain name has no place for choices. Without the package t5fusion, an adapter would be saved with the
            # plain name, and a reload would lose them.
            if not recorded.choices:
                self.fused_name = self.fused_name or self.name_or_path
                self.name_or_path = resolve_embedded(recorded.base_model)
                for adapter in getattr(self, "peft_config", {}).values():
                    adapter.base_model_name_or_path = self.name_or_path
                    adapter.revision = recorded.commit or adapter.revision
        return embeddings


def _requested_outputs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords that ask a T5 for further outputs, for a call of its encoder alone."""
    return {name: kwargs[name] for name in ("output_attentions", "output_hidden_states") if name in kwargs}


def _scale_loss(output: Any, share: torch.Tensor) -> Any:
    """Return the model's output with its loss multiplied by `share`.

    T5's loss is a mean over one batch. With gradient accumulation, the Trainer adds up the losses of a step's batches.
    So each batch must count by its share of the step's label tokens.

    Args:
        output: A `Seq2SeqLMOutput`, or a tuple that begins with the loss.
        share: This batch's part of the step's label tokens, float ().
    """
    loss = output[0] * share
    if isinstance(output, tuple):
        return loss, *output[1:]
    output["loss"] = loss
    return output


def _resize_for_adapter(model: T5WithFusion, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
    """Resize the embedding table if the weights are of an adapter with a resized table.

    torch calls this hook before `load_state_dict`.
    """
    table = state_dict.get(f"{prefix}shared.weight")
    rows = model.shared.weight.shape[0]
    # An adapter may hold the embedding table, but never this weight of the base model.
    is_adapter = f"{prefix}encoder.final_layer_norm.weight" not in state_dict
    if table is not None and is_adapter and len(table) != rows:
        logger.info(f"The adapter was trained with {len(table)} embeddings, so the model's table of {rows} is resized.")
        model.resize_token_embeddings(len(table), mean_resizing=False)


def register_with_peft() -> None:
    """Give the model type "t5_fusion" the defaults that PEFT's tables have for "t5", such as LoRA's target modules."""
    try:
        from peft.utils import constants
    except ImportError:
        return
    for mapping in vars(constants).values():
        if isinstance(mapping, dict) and "t5" in mapping:
            mapping.setdefault(T5FusionConfig.model_type, mapping["t5"])
    # PEFT looks up the base model's config to learn whether the embedding table was resized, and warns if it finds none
    # under the name "T5WithFusion(...)". The warning is needless: `resize_token_embeddings` gives a resized model a
    # name that PEFT finds.
    warnings.filterwarnings("ignore", "Could not find a config file in T5WithFusion")


T5FusionConfig.register_for_auto_class()
T5WithFusion.register_for_auto_class("AutoModelForSeq2SeqLM")
# Remote code must not register itself for all models of the process, only serve its own repository.
if not __name__.startswith("transformers_modules."):
    AutoConfig.register(T5FusionConfig.model_type, T5FusionConfig, exist_ok=True)
    AutoModel.register(T5FusionConfig, T5WithFusion, exist_ok=True)
    AutoModelForSeq2SeqLM.register(T5FusionConfig, T5WithFusion, exist_ok=True)
register_with_peft()

__all__ = ["T5WithFusion"]
