"""T5 that reads lexical vectors: each vector is projected and takes the place of one `<lexical>` token of its row.

`LexicalFusion` projects the vectors, `LexicalEncoder` puts them in place, `T5WithFusion` is the whole model.
`loading_t5fusion.py` loads it, `saving_t5fusion.py` saves it, and `fitting_t5fusion.py` starts its fusion layer.
"""

import os
import warnings

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, GenerationMixin, T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5LayerNorm, T5Stack
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, logging

from .configuration_t5fusion import LEXICAL_TOKEN, PLACED_TOKEN_IDS, T5FusionConfig
from .fitting_t5fusion import FittingMixin
from .loading_t5fusion import FusedLoadingMixin
from .naming_t5fusion import FusedName, resolve_embedded
from .saving_t5fusion import SavingMixin

logger = logging.get_logger(__name__)


class LexicalFusion(nn.Module):
    """Projects lexical vectors, float (..., lexical_dim), to token embeddings, (..., d_model).

    T5's token embeddings are large (root mean square 1 and above) and the projection of a unit vector is small (about
    0.05), so it is normalised to the size of the backbone's own embeddings, which `norm.weight` starts from.
    """

    def __init__(self, config: T5FusionConfig):
        super().__init__()
        self.projection = nn.Linear(config.lexical_dim, config.d_model)
        self.norm = T5LayerNorm(config.d_model, eps=config.layer_norm_epsilon)

    def forward(self, lexical_embeds: torch.Tensor) -> torch.Tensor:
        # the projection's own type would be that of integers where it is quantised
        return self.norm(self.projection(lexical_embeds.to(self.norm.weight.dtype)))

    @torch.no_grad()
    def reset_parameters(self, token_embeddings: torch.Tensor) -> None:
        """The initial weights: the same bits on every machine, for the same sizes and the same backbone."""
        self.projection.weight.copy_(initial_projection(self.projection.weight.shape))
        self.projection.bias.zero_()
        # Three digits: a sum over millions of numbers differs in its last bits from machine to machine.
        self.norm.weight.fill_(float(f"{token_embeddings.double().square().mean().sqrt().item():.3g}"))


def initial_projection(shape: torch.Size) -> torch.Tensor:
    """The projection's initial weight, float32 (d_model, lexical_dim): its output is as large as the vector."""
    # Uniform and from a generator of its own on the CPU: normal numbers, and a GPU's, differ between machines.
    # The dtype and the device are named, since a process may have set other defaults.
    generator = torch.Generator("cpu").manual_seed(0)
    noise = torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu") - 0.5
    return noise * (12 / shape[1]) ** 0.5


class StartsAsT5:
    """Random weights as T5 draws them: in classes not its own, transformers skips what a module draws for its parts."""

    def _initialize_weights(self, module, *is_custom_code):
        super()._initialize_weights(module)


class LexicalEncoder(StartsAsT5, T5Stack):
    """T5's encoder with a fusion layer before its first block."""

    def __init__(self, config: T5FusionConfig):
        super().__init__(config)
        self.fusion = LexicalFusion(config)

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, lexical_embeds=None, **kwargs):
        ready = input_ids is None and lexical_embeds is None  # as `T5WithFusion.forward` hands them over
        if (input_ids is None) != (inputs_embeds is None) and not ready:  # both or none: T5 tells of it
            inputs_embeds = self.embed(input_ids, inputs_embeds, lexical_embeds)
            input_ids = None
        return super().forward(
            input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **kwargs
        )

    def embed(self, input_ids=None, inputs_embeds=None, lexical_embeds=None) -> torch.Tensor:
        """Token embeddings (batch, length, d_model) with the lexical vectors in the places of their placeholders.

        Args:
            input_ids: int64 (batch, length); or, in their stead,
            inputs_embeds: (batch, length, d_model), placeholders being the rows equal to `<lexical>`'s own embedding.
            lexical_embeds: float (batch, lexical_dim) or (batch, vectors, lexical_dim). A row with fewer placeholders
                than vectors uses its first ones; the others must be zero, that is, padding.

        Where gradients are wanted, a batch without vectors gives the fusion layer gradients of zero rather than none:
        whoever waits for those of all weights (DistributedDataParallel, PEFT's OSF) waits for these as well.

        Raises:
            ValueError: vectors and placeholders do not fit; it says which row, and what to do.
        """
        token_id = self.config.lexical_token_id
        if input_ids is not None:
            check_token_id(input_ids, lexical_embeds, token_id, self.config.pad_token_id)
            is_placeholder = input_ids == token_id
            # the placeholder may lie past the table: its own row is never needed
            inputs_embeds = self.embed_tokens(input_ids.masked_fill(is_placeholder, 0))
        elif lexical_embeds is None:
            is_placeholder = torch.zeros(inputs_embeds.shape[:2], dtype=torch.bool, device=inputs_embeds.device)
        else:
            is_placeholder = (inputs_embeds == self._placeholder_embedding(token_id)).all(-1)
        if lexical_embeds is not None:
            lexical_embeds = check_vectors(lexical_embeds, is_placeholder, self.config.lexical_dim)
        check_placeholders(is_placeholder, lexical_embeds, token_id)
        if lexical_embeds is None or lexical_embeds.shape[1] == 0:
            if not torch.is_grad_enabled():
                return inputs_embeds
            lexical_embeds = inputs_embeds.new_zeros(inputs_embeds.shape[0], 1, self.config.lexical_dim)  # goes nowhere
        vectors = self.fusion(lexical_embeds).to(inputs_embeds)  # its type, and its device: they may be apart
        order = (is_placeholder.cumsum(1) - 1).clamp(0, vectors.shape[1] - 1)  # which of its row's vectors goes here
        # not take_along_dim, whose sizes torch.export would fix to those of the example
        in_place = vectors.gather(1, order.unsqueeze(-1).expand(-1, -1, vectors.shape[-1]))
        return torch.where(is_placeholder.unsqueeze(-1), in_place, inputs_embeds)

    def _placeholder_embedding(self, token_id: int) -> torch.Tensor:
        rows = self.embed_tokens.weight.shape[0]
        if token_id >= rows:
            raise ValueError(
                f"`inputs_embeds` cannot show where {LEXICAL_TOKEN} stands: its id, {token_id}, lies past the table of "
                f"{rows} rows. Give `input_ids`, or the result of `model.encoder.embed(input_ids, "
                "lexical_embeds=...)` as `inputs_embeds` and no `lexical_embeds`."
            )
        return self.embed_tokens.weight[token_id]


def check_token_id(
    input_ids: torch.Tensor, lexical_embeds: torch.Tensor | None, token_id: int, pad_token_id: int | None
) -> None:
    """Whether the rows were made by a tokenizer in which `<lexical>` has another id than the model's `token_id`.

    Nothing is looked at where every tokenizer of this process places `token_id`, and in compiled graphs.

    Raises:
        ValueError: a row with a vector begins, after its padding, with another tokenizer's placeholder.
    """
    if torch.compiler.is_compiling() or lexical_embeds is None or input_ids.is_meta or lexical_embeds.is_meta:
        return
    others = PLACED_TOKEN_IDS - {token_id}
    if not others or lexical_embeds.shape[:1] != input_ids.shape[:1] or input_ids.shape[1] == 0:
        return  # where the sizes differ, `check_vectors` says so
    has_vector = (lexical_embeds != 0).flatten(1).any(1).tolist()
    is_text = (input_ids != (-1 if pad_token_id is None else pad_token_id)).int()
    first = input_ids.gather(1, is_text.argmax(1, keepdim=True)).squeeze(1).tolist()
    has_own = (input_ids == token_id).any(1).tolist()
    for row, other in enumerate(first):
        # A smaller id may be a word of this model's vocabulary and the placeholder of another model's tokenizer, in a
        # text that holds its own placeholder further on.
        is_word = other < token_id and token_id in PLACED_TOKEN_IDS and has_own[row]
        if has_vector[row] and other in others and not is_word:
            raise ValueError(
                f"row {row} begins with token {other}, which is {LEXICAL_TOKEN} in the tokenizer; in the model it is "
                f"token {token_id}. Put DataCollatorWithFusion or T5FusionProcessor on the tokenizer before adding "
                f"tokens to it, or build the model with `T5WithFusion(..., lexical_token_id={other})`."
            )


def check_vectors(lexical_embeds: torch.Tensor, is_placeholder: torch.Tensor, width: int) -> torch.Tensor:
    """`lexical_embeds` as (batch, vectors, width); ValueError where kind, device or shape do not fit."""
    if not lexical_embeds.is_floating_point():
        raise ValueError(
            f"`lexical_embeds` are {lexical_embeds.dtype}; expected floating point numbers. Use `.float()`."
        )
    if lexical_embeds.device != is_placeholder.device:
        raise ValueError(
            f"`lexical_embeds` are on {lexical_embeds.device}, the input ids on {is_placeholder.device}. "
            f"Use `.to({str(is_placeholder.device)!r})`."
        )
    if lexical_embeds.dim() not in (2, 3) or lexical_embeds.shape[0] != is_placeholder.shape[0]:
        raise ValueError(
            f"`lexical_embeds` have the shape {tuple(lexical_embeds.shape)}; expected ({is_placeholder.shape[0]}, "
            f"{width}) or ({is_placeholder.shape[0]}, vectors, {width}): one row for each of the batch."
        )
    if lexical_embeds.shape[-1] != width:
        raise ValueError(
            f"`lexical_embeds` are {lexical_embeds.shape[-1]} numbers wide; expected {width} (`config.lexical_dim`). "
            f"Use the encoder of the training, or build the model with `lexical_dim={lexical_embeds.shape[-1]}`."
        )
    return lexical_embeds if lexical_embeds.dim() == 3 else lexical_embeds.unsqueeze(1)


def check_placeholders(is_placeholder: torch.Tensor, lexical_embeds: torch.Tensor | None, token_id: int) -> None:
    """Each vector needs a placeholder and each placeholder a vector.

    Looking at the numbers would make a GPU wait, so there, and in compiled graphs, an assertion goes with the queue.

    Raises:
        ValueError: on the CPU, naming the row and both numbers. Elsewhere the device's own assertion fails.
    """
    placeholders = is_placeholder.sum(1)
    if lexical_embeds is None:
        vectors = torch.zeros_like(placeholders)
    else:  # a row's vectors end with the last that is not zero
        index = torch.arange(1, lexical_embeds.shape[1] + 1, device=lexical_embeds.device)
        used = (lexical_embeds != 0).any(-1) * index
        vectors = used.amax(1) if lexical_embeds.shape[1] else torch.zeros_like(placeholders)
    most = 0 if lexical_embeds is None else lexical_embeds.shape[1]
    bad = (placeholders < vectors) | (placeholders > most)
    if is_placeholder.device.type != "cpu" or torch.compiler.is_compiling():
        torch._assert_async(~bad.any(), f"{LEXICAL_TOKEN} placeholders and lexical vectors do not agree in number")
    elif bad.any():
        row = int(bad.nonzero()[0])
        raise ValueError(_disagreement(placeholders, vectors, row, most, token_id))


def _disagreement(placeholders: torch.Tensor, vectors: torch.Tensor, row: int, most: int, token_id: int) -> str:
    if most == 0:
        return (
            f"row {row} holds {int(placeholders[row])} placeholders {LEXICAL_TOKEN} (id {token_id}) and no vectors "
            "were given. Give them as `lexical_embeds`, or leave the placeholders out."
        )
    if not placeholders.any():
        return (
            f"`lexical_embeds` were given, but no row holds a placeholder {LEXICAL_TOKEN} (id {token_id}). Use "
            "DataCollatorWithFusion or T5FusionProcessor, which place it."
        )
    number = int(vectors[row]) if placeholders[row] < vectors[row] else most
    return (
        f"row {row} holds {int(placeholders[row])} placeholders {LEXICAL_TOKEN} (id {token_id}) for {number} vectors; "
        "expected one placeholder per vector. Use DataCollatorWithFusion or T5FusionProcessor, which place them; a "
        "row with fewer vectors than others is padded with zeros."
    )


class T5WithFusion(
    FusedLoadingMixin, SavingMixin, FittingMixin, StartsAsT5, T5ForConditionalGeneration, GenerationMixin
):
    """T5 for conditional generation with `lexical_embeds`. Without them it is, to the bit, the plain T5.

    `T5WithFusion("google/flan-t5-small")` is `T5WithFusion.from_pretrained("google/flan-t5-small")`;
    `T5WithFusion(config)` makes random weights.
    """

    config_class = T5FusionConfig
    _has_trained_on_vectors = False

    def __new__(cls, config=None, *args, **kwargs):  # copies and pickles give none
        if isinstance(config, (str, os.PathLike)):
            return cls.from_pretrained(config, *args, **kwargs)
        return super().__new__(cls)

    def __init__(self, config, *args, **kwargs):
        if isinstance(config, (str, os.PathLike)):  # `__new__` has loaded and made everything
            return
        if not hasattr(config, "lexical_dim"):
            raise ValueError(
                f"a {type(config).__name__} has no `lexical_dim`; expected a T5FusionConfig. Make one of it: "
                "`T5FusionConfig(lexical_dim=384, **config.to_dict())`."
            )
        super().__init__(config, *args, **kwargs)
        self.encoder = LexicalEncoder(self.encoder.config)
        quantised = getattr(config, "quantization_config", None) is not None
        # in fp16, Adam's second step makes NaN of its weights
        if quantised or self.encoder.fusion.norm.weight.dtype == torch.float16:
            self._keep_in_fp32_modules = [*self._keep_in_fp32_modules, "encoder.fusion"]
            self.encoder.fusion.float()  # one yet to be made
        if quantised:
            self._keep_in_fp32_modules_strict = ["encoder.fusion"]  # in bf16 too; quantisers pass over it
        if config.architectures != [type(self).__name__]:  # a plain T5's weights hold no fusion layer, nor need they
            self._keys_to_ignore_on_load_missing = [r"encoder\.fusion\."]
        self.post_init()
        self.register_load_state_dict_pre_hook(_resize_for_adapter)
        if not self.shared.weight.is_meta:
            self.encoder.fusion.reset_parameters(self.shared.weight)

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        decoder_input_ids=None,
        decoder_attention_mask=None,
        encoder_outputs=None,
        past_key_values=None,
        inputs_embeds=None,
        decoder_inputs_embeds=None,
        labels=None,
        use_cache=None,
        lexical_embeds=None,
        **kwargs: Unpack[TransformersKwargs],
    ):
        """T5's forward, with vectors. Every argument is spelled out: the Trainer drops columns that are not named here.

        Args:
            input_ids: int64 (batch, length), with one `<lexical>` (`config.lexical_token_id`) per vector.
            lexical_embeds: float (batch, lexical_dim) or (batch, vectors, lexical_dim), see `LexicalEncoder.embed`. Not
                looked at when `encoder_outputs` are given, which hold them already.
            others: as in [`~transformers.T5ForConditionalGeneration.forward`].

        Raises:
            ValueError: vectors and placeholders do not fit.
        """
        if all(given is None for given in (decoder_input_ids, decoder_inputs_embeds, labels)):
            raise ValueError(
                "no `decoder_input_ids` were given, nor `labels` to make them of. Give one of them; for label "
                "smoothing, where the Trainer keeps the labels, use `DataCollatorWithFusion(tokenizer, model=model)`."
            )
        if encoder_outputs is None and (input_ids is None) != (inputs_embeds is None):
            if self.training and not torch.compiler.is_compiling():
                self._warn_of_idle_vectors(lexical_embeds)
            inputs_embeds = self.encoder.embed(input_ids, inputs_embeds, lexical_embeds)
            input_ids = None
        tokens_of_step = kwargs.pop("num_items_in_batch", None)
        if past_key_values is not None:  # transformers 5.24 calls it `cache`, and warns where it is given by this name
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
        if tokens_of_step is not None and labels is not None:  # T5's loss, a mean over this batch alone, would add up
            loss = output[0] * ((labels != -100).sum() / tokens_of_step)
            if isinstance(output, tuple):
                return loss, *output[1:]
            output["loss"] = loss
        return output

    def _get_logits_processor(self, *args, encoder_input_ids=None, **kwargs):
        # penalties look up the input's ids among the logits, where a placeholder past the table has none
        if encoder_input_ids is not None and not encoder_input_ids.is_floating_point():
            is_placeholder = encoder_input_ids == self.config.lexical_token_id
            encoder_input_ids = encoder_input_ids.masked_fill(is_placeholder, self.config.pad_token_id or 0)
        return super()._get_logits_processor(*args, encoder_input_ids=encoder_input_ids, **kwargs)

    def _warn_of_idle_vectors(self, lexical_embeds):
        """Warn, once, where training gives the model no vectors, or leaves the fusion layer as it is."""
        if lexical_embeds is None:
            if not self._has_trained_on_vectors:
                logger.warning_once(
                    "This training batch has no vectors, so the fused model trains as the plain T5. Vectors are read "
                    "from the column `lexical_embeds`; the Trainer drops a column of another name."
                )
            return
        self._has_trained_on_vectors = True
        adapters = getattr(self, "peft_config", {}).values()
        if any(getattr(adapter, "modules_to_save", None) == [] for adapter in adapters):  # the user froze it
            return
        parameters = list(self.encoder.fusion.parameters())  # none in the replicas of DataParallel, nor under FSDP
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            logger.warning_once(
                "The fusion layer is frozen while the rest trains, so the vectors count for little. `import t5fusion` "
                "before the adapter is put on trains it too; so does `modules_to_save=['fusion']` in the adapter's "
                "config. `modules_to_save=[]` says that it is meant to be frozen."
            )

    def lora_config(self, **overrides):
        """The recommended `peft.LoraConfig`: r 32, alpha 32, dropout 0.05 on each matrix of the blocks, and the whole
        fusion layer. (PEFT's own default, q and v alone, was measured: docs/method.md of the package.)

        Args:
            **overrides: fields of `peft.LoraConfig` that replace these, or add to them.

        Raises:
            ImportError: peft is not installed.
        """
        try:
            from peft import LoraConfig, TaskType
        except ImportError as error:
            raise ImportError("`lora_config` makes a config of peft: `pip install peft`.") from error
        feed_forward = ["wi_0", "wi_1"] if self.config.is_gated_act else ["wi"]
        recommended = {
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
        # PEFT asks by this name, at which transformers warns from 5.23 on
        return any(getattr(module, "gradient_checkpointing", False) for module in self.modules())

    def get_expanded_tied_weights_keys(self, *args, **kwargs):
        tied = super().get_expanded_tied_weights_keys(*args, **kwargs)
        if not self.config.scale_decoder_outputs:  # a head of its own, which T5's config has no other word for
            tied.pop("lm_head.weight", None)
        return tied

    def tie_weights(self, missing_keys=None, recompute_mapping=True):
        if missing_keys is not None and "lm_head.weight" in missing_keys:  # an mT5 that was tied
            self.all_tied_weights_keys["lm_head.weight"] = "shared.weight"
        # as the checkpoint was, not anew, when the vocabulary is resized
        super().tie_weights(missing_keys=missing_keys, recompute_mapping=False)

    def resize_token_embeddings(self, *args, **kwargs):
        rows = self.shared.num_embeddings
        wanted = args[0] if args else kwargs.get("new_num_tokens")
        if wanted == rows + 1 == self.config.lexical_token_id + 1:
            # AutoPeftModel makes a row for each token of the tokenizer; the placeholder, the only new one, needs none
            return self.get_input_embeddings()
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        if embeddings.num_embeddings != rows:
            # PEFT finds out by this name whether to save the table too; its shape then keeps it out of a plain T5
            named = FusedName.parse(self.name_or_path)
            if not named.choices:
                self.name_or_path = resolve_embedded(named.plain)
                for adapter in getattr(self, "peft_config", {}).values():
                    adapter.base_model_name_or_path = self.name_or_path
                    adapter.revision = named.commit or adapter.revision
        return embeddings


def _resize_for_adapter(model: T5WithFusion, state_dict: dict, prefix: str, *args) -> None:
    """Give the embedding table the rows that an adapter saved with it has: it was trained after a resize."""
    table, others = state_dict.get(f"{prefix}shared.weight"), f"{prefix}encoder.final_layer_norm.weight"
    rows = model.shared.weight.shape[0]
    if table is not None and others not in state_dict and len(table) != rows:
        logger.info(f"the adapter was trained on a table of {len(table)} rows: the model's {rows} rows are resized")
        model.resize_token_embeddings(len(table), mean_resizing=False)


def register_with_peft() -> None:
    """PEFT's defaults go by `model_type`: wherever it has a row for T5, `t5_fusion` gets the same."""
    try:
        from peft.utils import constants
    except ImportError:
        return
    for mapping in vars(constants).values():
        if isinstance(mapping, dict) and "t5" in mapping:
            mapping.setdefault(T5FusionConfig.model_type, mapping["t5"])
    # it looks there whether the table was resized, which `resize_token_embeddings` sees to
    warnings.filterwarnings("ignore", "Could not find a config file in T5WithFusion")


T5FusionConfig.register_for_auto_class()
T5WithFusion.register_for_auto_class("AutoModelForSeq2SeqLM")
if not __name__.startswith("transformers_modules."):  # remote code stands for its own repository, not for others
    AutoConfig.register(T5FusionConfig.model_type, T5FusionConfig, exist_ok=True)
    AutoModel.register(T5FusionConfig, T5WithFusion, exist_ok=True)
    AutoModelForSeq2SeqLM.register(T5FusionConfig, T5WithFusion, exist_ok=True)
register_with_peft()

__all__ = ["T5WithFusion"]
