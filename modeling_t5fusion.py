"""T5 that reads lexical vectors: each vector is projected and takes the place of one `<lexical>` token of its row.

`LexicalFusion` projects the vectors, `LexicalEncoder` puts them in place, and `T5WithFusion` is the whole model.
`checking_t5fusion.py` checks its inputs, `loading_t5fusion.py` loads it, `saving_t5fusion.py` saves it, and
`fitting_t5fusion.py` starts its fusion layer.
"""

import os
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, GenerationMixin, T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5LayerNorm, T5Stack
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, logging

from .checking_t5fusion import check_placeholders, check_token_id, check_vectors
from .configuration_t5fusion import LEXICAL_TOKEN, T5FusionConfig
from .fitting_t5fusion import FittingMixin
from .loading_t5fusion import FusedLoadingMixin, FusedModel, NameOrPath
from .naming_t5fusion import FusedName, resolve_embedded
from .rows_t5fusion import IGNORED
from .saving_t5fusion import SavingMixin

if TYPE_CHECKING:
    # With this file, transformers copies and downloads the files that its text imports (5.0: only those that it imports
    # itself). So these imports take the processor and the pipeline along, and need not run.
    from .arguments_t5fusion import given_vectors  # noqa: F401
    from .collating_t5fusion import DataCollatorWithFusion  # noqa: F401
    from .pipeline_t5fusion import T5FusionPipeline  # noqa: F401
    from .processing_t5fusion import T5FusionProcessor  # noqa: F401
    from .tokenizing_t5fusion import tokenize  # noqa: F401

    # peft is optional. transformers refuses to load remote code that imports a missing package outside a `try`.
    try:  # noqa: SIM105
        from peft import LoraConfig
    except ImportError:
        pass

logger = logging.get_logger(__name__)


class LexicalFusion(nn.Module):
    """The fusion layer: projects lexical vectors, float (..., lexical_dim), to token embeddings, (..., d_model).

    T5's token embeddings are large (root mean square of 1 and above), while the projection of a unit vector is small
    (about 0.05). So the projection is normalised to the size of the base model's embeddings: `norm.weight` starts from
    their root mean square.
    """

    def __init__(self, config: T5FusionConfig) -> None:
        super().__init__()
        self.projection = nn.Linear(config.lexical_dim, config.d_model)
        self.norm = T5LayerNorm(config.d_model, eps=config.layer_norm_epsilon)

    def forward(self, lexical_embeds: torch.Tensor) -> torch.Tensor:
        # The projection's own dtype cannot be used: a quantised projection has an integer dtype.
        return self.norm(self.projection(lexical_embeds.to(self.norm.weight.dtype)))

    @torch.no_grad()
    def reset_parameters(self, token_embeddings: torch.Tensor) -> None:
        """Set the initial weights, which have the same bits on every machine for the same sizes and base model.

        Args:
            token_embeddings: The base model's embedding table, float (rows, d_model).
        """
        self.projection.weight.copy_(initial_projection(self.projection.weight.shape))
        self.projection.bias.zero_()
        # Keep three digits, because the last bits of a sum over millions of numbers differ between machines.
        self.norm.weight.fill_(float(f"{token_embeddings.double().square().mean().sqrt().item():.3g}"))


def initial_projection(shape: torch.Size) -> torch.Tensor:
    """Return the projection's initial weight, float32 (d_model, lexical_dim), whose output is as large as its input."""
    # Normal random numbers, and those of a GPU, differ between machines. Uniform ones from a CPU generator do not.
    # The dtype and the device are explicit, because the process may have other defaults.
    generator = torch.Generator("cpu").manual_seed(0)
    noise = torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu") - 0.5
    return noise * (12 / shape[1]) ** 0.5


class T5InitMixin:
    """T5's random initial weights. transformers itself would give them to its own classes only."""

    def _initialize_weights(self, module: nn.Module, *is_custom_code: Any) -> None:
        super()._initialize_weights(module)  # type: ignore[misc]


class LexicalEncoder(T5InitMixin, T5Stack):
    """T5's encoder with a fusion layer before its first block."""

    def __init__(self, config: T5FusionConfig) -> None:
        super().__init__(config)
        self.fusion = LexicalFusion(config)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        lexical_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the encoder; see `embed` for the inputs. Returns what [`~transformers.models.t5.T5Stack`] returns."""
        is_embedded = input_ids is None and lexical_embeds is None  # `T5WithFusion.forward` has called `embed` already.
        # If both `input_ids` and `inputs_embeds` are given, or neither is, T5 raises its own error.
        if (input_ids is None) != (inputs_embeds is None) and not is_embedded:
            inputs_embeds = self.embed(input_ids, inputs_embeds, lexical_embeds)
            input_ids = None
        return super().forward(
            input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **kwargs
        )

    def embed(
        self,
        input_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        lexical_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return token embeddings, float (batch, length, d_model), with lexical vectors in place of placeholders.

        Args:
            input_ids: int64 (batch, length). Pass either these or `inputs_embeds`.
            inputs_embeds: Float (batch, length, d_model). Its placeholders are the positions that equal the embedding
                of `<lexical>`.
            lexical_embeds: Float (batch, lexical_dim) or (batch, vectors, lexical_dim). A row with fewer placeholders
                than vectors uses its first vectors; the others must be zero, that is, padding.

        With gradients enabled, a batch without vectors still gives the fusion layer gradients, which are zero. Some
        callers (DistributedDataParallel, PEFT's OSF) wait for the gradient of every weight.

        Raises:
            ValueError: Vectors and placeholders do not match. The message names the row and says what to do.
        """
        is_placeholder, inputs_embeds = self._find_placeholders(input_ids, inputs_embeds, lexical_embeds)
        if lexical_embeds is not None:
            lexical_embeds = check_vectors(lexical_embeds, is_placeholder, self.config.lexical_dim)
        check_placeholders(is_placeholder, lexical_embeds, self.config.lexical_token_id)
        if lexical_embeds is None or lexical_embeds.shape[1] == 0:
            if not torch.is_grad_enabled():
                return inputs_embeds
            lexical_embeds = inputs_embeds.new_zeros(inputs_embeds.shape[0], 1, self.config.lexical_dim)
        vectors = self.fusion(lexical_embeds).to(inputs_embeds)  # the fusion layer may have another dtype and device
        # For each position, the index of the vector that goes there, if the position is a placeholder.
        vector_index = (is_placeholder.cumsum(1) - 1).clamp(0, vectors.shape[1] - 1)
        # `take_along_dim` would make torch.export fix the sizes to those of its example.
        vector_at = vectors.gather(1, vector_index.unsqueeze(-1).expand(-1, -1, vectors.shape[-1]))
        return torch.where(is_placeholder.unsqueeze(-1), vector_at, inputs_embeds)

    def _find_placeholders(
        self, input_ids: torch.Tensor | None, inputs_embeds: Any, lexical_embeds: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a mask of the placeholders, bool (batch, length), and token embeddings (batch, length, d_model)."""
        token_id = self.config.lexical_token_id
        if input_ids is not None:
            check_token_id(input_ids, lexical_embeds, token_id, self.config.pad_token_id)
            is_placeholder = input_ids == token_id
            # The placeholder's id may lie past the embedding table. So look up row 0; `embed` replaces it by a vector.
            return is_placeholder, self.embed_tokens(input_ids.masked_fill(is_placeholder, 0))
        if lexical_embeds is None:
            is_placeholder = torch.zeros(inputs_embeds.shape[:2], dtype=torch.bool, device=inputs_embeds.device)
        else:
            is_placeholder = (inputs_embeds == self._placeholder_embedding(token_id)).all(-1)
        return is_placeholder, inputs_embeds

    def _placeholder_embedding(self, token_id: int) -> torch.Tensor:
        """Return the embedding of `<lexical>`, or raise ValueError if its id lies past the table."""
        rows = self.embed_tokens.weight.shape[0]
        if token_id >= rows:
            raise ValueError(
                f"`inputs_embeds` cannot show where {LEXICAL_TOKEN} stands: its id, {token_id}, lies past the table of "
                f"{rows} rows. Pass `input_ids`; or pass the result of `model.encoder.embed(input_ids, "
                "lexical_embeds=...)` as `inputs_embeds`, without `lexical_embeds`."
            )
        return self.embed_tokens.weight[token_id]


class T5WithFusion(
    FusedLoadingMixin, SavingMixin, FittingMixin, T5InitMixin, T5ForConditionalGeneration, GenerationMixin
):
    """T5 for conditional generation that reads lexical vectors beside its text.

    Without vectors it gives the same bits as the plain T5. `T5WithFusion("google/flan-t5-small", lexical_dim=768)` is
    short for `T5WithFusion.from_pretrained("google/flan-t5-small", lexical_dim=768)`. `T5WithFusion(config)` builds a
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
    _keep_in_fp32_modules: Any
    _has_trained_on_vectors = False

    # `copy` and `pickle` call this without a config.
    def __new__(
        cls: type[FusedModel], config: T5FusionConfig | NameOrPath | None = None, *args: Any, **kwargs: Any
    ) -> FusedModel:
        if isinstance(config, (str, os.PathLike)):
            return cls.from_pretrained(config, *args, **kwargs)
        return super().__new__(cls)  # type: ignore[misc]

    def __init__(self, config: T5FusionConfig | NameOrPath, *args: Any, **kwargs: Any) -> None:
        """See the class: `config` is a Hub id, a folder or a [`T5FusionConfig`]."""
        if isinstance(config, (str, os.PathLike)):  # `__new__` has loaded the model already.
            return
        if not hasattr(config, "lexical_dim"):
            raise ValueError(
                f"a {type(config).__name__} has no `lexical_dim`; expected a T5FusionConfig. Convert it: "
                "`T5FusionConfig(lexical_dim=384, **config.to_dict())`."
            )
        super().__init__(config, *args, **kwargs)
        self.encoder = LexicalEncoder(self.encoder.config)
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
            self._keep_in_fp32_modules = [*self._keep_in_fp32_modules, "encoder.fusion"]  # for weights that are loaded
            self.encoder.fusion.float()  # for a fusion layer that is not in the checkpoint
        if is_quantised:
            self._keep_in_fp32_modules_strict = ["encoder.fusion"]  # also in bf16, and quantisers skip these modules

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
        lexical_embeds: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Any:
        """Run T5 with lexical vectors.

        Args:
            input_ids: int64 (batch, length), with one `<lexical>` (`config.lexical_token_id`) per vector.
            lexical_embeds: Float (batch, lexical_dim) or (batch, vectors, lexical_dim); see `LexicalEncoder.embed`.
                Ignored if `encoder_outputs` are given, because those contain the vectors already.
            others: As in [`~transformers.T5ForConditionalGeneration.forward`].

        Returns:
            A [`~transformers.modeling_outputs.Seq2SeqLMOutput`], or a tuple with `return_dict=False`.

        Raises:
            ValueError: Vectors and placeholders do not match, or the decoder has no input.
        """
        # Every argument is spelled out, because the Trainer drops columns that this signature does not name.
        if all(decoder_input is None for decoder_input in (decoder_input_ids, decoder_inputs_embeds, labels)):
            raise ValueError(
                "neither `decoder_input_ids` nor `labels` were given; expected one of them. For label smoothing, where "
                "the Trainer keeps the labels, use `DataCollatorWithFusion(tokenizer, model=model)`."
            )
        if encoder_outputs is None and (input_ids is None) != (inputs_embeds is None):
            if self.training and not torch.compiler.is_compiling():
                self._warn_of_idle_vectors(lexical_embeds)
            inputs_embeds = self.encoder.embed(input_ids, inputs_embeds, lexical_embeds)
            input_ids = None
        tokens_of_step = kwargs.pop("num_items_in_batch", None)
        if past_key_values is not None:  # transformers 5.24 renames it to `cache` and warns about the old name.
            kwargs["past_key_values"] = past_key_values
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
        if tokens_of_step is not None and labels is not None:
            return _scale_loss(output, (labels != IGNORED).sum() / tokens_of_step)
        return output

    def _get_logits_processor(self, *args: Any, encoder_input_ids: Any = None, **kwargs: Any) -> Any:
        # Penalties look up the input ids among the logits, and a placeholder past the table has no logit.
        if encoder_input_ids is not None and not encoder_input_ids.is_floating_point():
            is_placeholder = encoder_input_ids == self.config.lexical_token_id
            encoder_input_ids = encoder_input_ids.masked_fill(is_placeholder, self.config.pad_token_id or 0)
        return super()._get_logits_processor(*args, encoder_input_ids=encoder_input_ids, **kwargs)

    def _warn_of_idle_vectors(self, lexical_embeds: torch.Tensor | None) -> None:
        """Warn once if training gives the model no vectors, or leaves the fusion layer frozen."""
        if lexical_embeds is None:
            if not self._has_trained_on_vectors:
                logger.warning_once(
                    "This training batch has no vectors, so the fused model trains as the plain T5. Vectors are read "
                    "from the column `lexical_embeds`; the Trainer drops a column of another name."
                )
            return
        self._has_trained_on_vectors = True
        adapters = getattr(self, "peft_config", {}).values()
        if any(getattr(adapter, "modules_to_save", None) == [] for adapter in adapters):  # frozen on purpose
            return
        parameters = list(self.encoder.fusion.parameters())  # empty in replicas of DataParallel, and under FSDP
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            logger.warning_once(
                "The fusion layer is frozen while the rest trains, so the vectors have little effect. To train it too, "
                "`import t5fusion` before you put the adapter on, or set `modules_to_save=['fusion']` in the adapter's "
                "config. To freeze it on purpose, set `modules_to_save=[]`."
            )

    def lora_config(self, **overrides: Any) -> "LoraConfig":
        """Return the recommended `peft.LoraConfig`: LoRA on every matrix of the blocks, and the whole fusion layer.

        It has r 32, alpha 32 and dropout 0.05. (PEFT's own default, q and v alone, did worse: docs/method.md of the
        package.)

        Args:
            **overrides: Fields of `peft.LoraConfig` that replace these, or add to them.

        Raises:
            ImportError: peft is not installed.
        """
        try:
            from peft import LoraConfig, TaskType
        except ImportError as error:
            raise ImportError("`lora_config` makes a config of peft: `pip install peft`.") from error
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
        tied = super().get_expanded_tied_weights_keys(*args, **kwargs)
        if not self.config.scale_decoder_outputs:  # This is how T5's config tells that the head has its own weights.
            tied.pop("lm_head.weight", None)
        return tied

    def tie_weights(self, missing_keys: Any = None, recompute_mapping: bool = True) -> None:
        if missing_keys is not None and "lm_head.weight" in missing_keys:  # an mT5 with a tied head
            self.all_tied_weights_keys["lm_head.weight"] = "shared.weight"
        # After a resize, tie what the checkpoint tied. A recomputed mapping would forget an mT5's head.
        super().tie_weights(missing_keys=missing_keys, recompute_mapping=False)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """Resize the embedding table as transformers does, except for the placeholder, which needs no row.

        Returns:
            The embedding layer.
        """
        rows = self.shared.num_embeddings
        wanted = args[0] if args else kwargs.get("new_num_tokens")
        adds_placeholder_only = wanted == rows + 1 and self.config.lexical_token_id == rows
        if adds_placeholder_only:  # AutoPeftModel asks for a row per token of the tokenizer.
            return self.get_input_embeddings()
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        if embeddings.num_embeddings != rows:
            # PEFT looks up the base model by its name to decide whether to save the table as well, so give it the plain
            # name. No plain T5 can then load the adapter by mistake, because the shape of its table does not fit.
            named = FusedName.parse(self.name_or_path)
            if not named.choices:
                self.name_or_path = resolve_embedded(named.base_model)
                for adapter in getattr(self, "peft_config", {}).values():
                    adapter.base_model_name_or_path = self.name_or_path
                    adapter.revision = named.commit or adapter.revision
        return embeddings


def _scale_loss(output: Any, share: torch.Tensor) -> Any:
    """Return the model's output with its loss multiplied by `share`: the part of a step's label tokens in this batch.

    T5's loss is a mean over one batch, and with gradient accumulation the Trainer adds up the losses of a step's
    batches. So each mean must count by its share.

    Args:
        output: A `Seq2SeqLMOutput`, or a tuple that begins with the loss.
        share: Float ().
    """
    loss = output[0] * share
    if isinstance(output, tuple):
        return loss, *output[1:]
    output["loss"] = loss
    return output


def _resize_for_adapter(model: T5WithFusion, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
    """Resize the embedding table to the rows of an adapter that was trained, and saved, with a resized table."""
    table = state_dict.get(f"{prefix}shared.weight")
    rows = model.shared.weight.shape[0]
    # An adapter holds the table, but not weights of the model such as this one.
    is_adapter = f"{prefix}encoder.final_layer_norm.weight" not in state_dict
    if table is not None and is_adapter and len(table) != rows:
        logger.info(f"the adapter was trained on a table of {len(table)} rows: the model's table of {rows} is resized")
        model.resize_token_embeddings(len(table), mean_resizing=False)


def register_with_peft() -> None:
    """Give `t5_fusion` PEFT's defaults for T5: wherever PEFT has a row for "t5", it gets the same row."""
    try:
        from peft.utils import constants
    except ImportError:
        return
    for mapping in vars(constants).values():
        if isinstance(mapping, dict) and "t5" in mapping:
            mapping.setdefault(T5FusionConfig.model_type, mapping["t5"])
    # PEFT looks in the base model's config for the size of its table, and warns that it finds none under the name
    # "T5WithFusion(...)". `resize_token_embeddings` makes sure that a resized table is saved.
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
