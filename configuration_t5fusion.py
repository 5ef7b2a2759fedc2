"""The configuration of `T5WithFusion`: T5's config with the fields that lexical vectors need."""

from typing import Any

from transformers import T5Config
from transformers.models.auto import modeling_auto

LEXICAL_TOKEN = "<lexical>"
DEFAULT_DIM = 384  # the width of the vectors that all-MiniLM-L6-v2 makes
T5_TOKENS = 32100  # Every T5, T5 v1.1 and FLAN-T5 has this many tokens, and 32,128 rows in its embedding table.
# The ids that tokenizers of this process gave to `<lexical>`. The model reads them only to report a mismatch.
PLACED_TOKEN_IDS: set[int] = set()


class T5FusionConfig(T5Config):
    """Configuration of a T5 that reads lexical vectors beside its text.

    Args:
        lexical_dim: Width of a lexical vector. The default, 384, is that of all-MiniLM-L6-v2.
        lexical_token_id: Id of the placeholder `<lexical>` in `input_ids`. It needs no row in the embedding table. The
            default is the first id that T5's tokenizer leaves free, or `vocab_size` if that is smaller.
        backbone: Hub id or folder of the base model that this model was built from; None for a model built from
            scratch.
        backbone_revision: Commit of the base model, if it came from the Hub.
        weights_from_backbone: If true, this checkpoint stores no base weights: load them from `backbone`.
        adapter_beside: If true, the folder or repository of this config also holds an adapter, and the model is
            incomplete without it.
        **kwargs: All arguments of [`~transformers.T5Config`].

    Raises:
        ValueError: `lexical_dim` or `lexical_token_id` is not a positive integer.
    """

    model_type = "t5_fusion"

    def __init__(
        self,
        lexical_dim: int = DEFAULT_DIM,
        lexical_token_id: int | None = None,
        backbone: str | None = None,
        backbone_revision: str | None = None,
        weights_from_backbone: bool = False,
        adapter_beside: bool = False,
        **kwargs: Any,
    ) -> None:
        # The config.json of a base model says "t5", which would hide the class attribute.
        kwargs.pop("model_type", None)
        # Every released T5 starts the decoder with the padding token.
        kwargs.setdefault("decoder_start_token_id", kwargs.get("pad_token_id", 0))
        # A head with weights of its own (T5 v1.1, FLAN-T5) takes unscaled decoder outputs. transformers 5.0 does not
        # keep the value of config.json, so it is set again below.
        scales_outputs = kwargs.get("scale_decoder_outputs", kwargs.get("tie_word_embeddings") is not False)
        super().__init__(**kwargs)
        self.scale_decoder_outputs = scales_outputs
        self.lexical_dim = _check_positive("lexical_dim", lexical_dim)
        if lexical_token_id is None:
            lexical_token_id = min(T5_TOKENS, self.vocab_size)
        self.lexical_token_id = _check_positive("lexical_token_id", lexical_token_id)
        self.backbone = backbone
        self.backbone_revision = backbone_revision
        self.weights_from_backbone = weights_from_backbone
        self.adapter_beside = adapter_beside

    def validate(self) -> None:
        """Check the fields as transformers does at each save, without its warning about the placeholder's id.

        transformers warns about every `*_token_id` past the embedding table. The placeholder may lie there.
        """
        lexical_token_id = self.__dict__.pop("lexical_token_id", None)
        try:
            super().validate()
        finally:
            if lexical_token_id is not None:
                self.lexical_token_id = lexical_token_id


def _check_positive(name: str, value: Any) -> int:
    """Return the value of a field, which must be a positive integer.

    Raises:
        ValueError: It is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"T5FusionConfig: `{name}` is {value!r}; expected a positive integer.")
    return value


# `transformers serve` loads only the model types that this table lists.
getattr(modeling_auto, "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES", {}).setdefault(
    T5FusionConfig.model_type, "T5WithFusion"
)

__all__ = ["LEXICAL_TOKEN", "PLACED_TOKEN_IDS", "T5FusionConfig"]
