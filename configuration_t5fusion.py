"""The configuration of `T5WithFusion`: T5's own, plus where its lexical vectors come in."""

from transformers import T5Config
from transformers.models.auto import modeling_auto

LEXICAL_TOKEN = "<lexical>"
T5_TOKENS = 32100  # tokens of every T5, T5 v1.1 and FLAN-T5; their embedding tables have 32,128 rows
# Ids under which tokenizers of this process place `<lexical>`. They are only read to explain a mismatch with the model.
PLACED_TOKEN_IDS: set[int] = set()


class T5FusionConfig(T5Config):
    """Configuration of a T5 that reads lexical vectors beside its text.

    Args:
        lexical_dim: width of a lexical vector (384 for all-MiniLM-L6-v2).
        lexical_token_id: id of the placeholder `<lexical>` in `input_ids`. It needs no row in the embedding table. By
            default the first id that T5's tokenizer leaves free, or `vocab_size` where that is smaller.
        backbone: Hub id (or folder) of the plain T5 that the model was built from; None for one made from scratch.
        backbone_revision: commit hash of the backbone, where it came from a Hub.
        weights_from_backbone: of a saved folder or repository: it holds no weights, those of its backbone are its own.
        adapter_beside: of such: an adapter lies beside this config, and the model is not whole without it.
        **kwargs: everything of [`~transformers.T5Config`].

    Raises:
        ValueError: `lexical_dim` or `lexical_token_id` is not a positive integer.
    """

    model_type = "t5_fusion"

    def __init__(
        self,
        lexical_dim=384,
        lexical_token_id=None,
        backbone=None,
        backbone_revision=None,
        weights_from_backbone=False,
        adapter_beside=False,
        **kwargs,
    ):
        kwargs.pop("model_type", None)  # a plain T5's config.json says "t5", and would win over the class attribute
        kwargs.setdefault("decoder_start_token_id", kwargs.get("pad_token_id", 0))  # as in every released T5
        # a head of its own takes unscaled outputs (T5 v1.1, FLAN); transformers 5.0 alone forgets what the file says
        scaled = kwargs.get("scale_decoder_outputs", kwargs.get("tie_word_embeddings") is not False)
        super().__init__(**kwargs)
        self.scale_decoder_outputs = scaled
        self.lexical_dim = _positive("lexical_dim", lexical_dim)
        if lexical_token_id is None:
            lexical_token_id = min(T5_TOKENS, self.vocab_size)
        self.lexical_token_id = _positive("lexical_token_id", lexical_token_id)
        self.backbone = backbone
        self.backbone_revision = backbone_revision
        self.weights_from_backbone, self.adapter_beside = weights_from_backbone, adapter_beside

    def validate(self):
        """Called at each save; it would warn of a `*_token_id` past the table, where the placeholder may well lie."""
        lexical_token_id = self.__dict__.pop("lexical_token_id", None)
        try:
            super().validate()
        finally:
            if lexical_token_id is not None:
                self.lexical_token_id = lexical_token_id


# `transformers serve` loads, beside transformers' own classes, only what stands in this table
getattr(modeling_auto, "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES", {}).setdefault(
    T5FusionConfig.model_type, "T5WithFusion"
)


def _positive(name, value):
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"T5FusionConfig: `{name}` is {value!r}; expected a positive integer.")
    return value


__all__ = ["LEXICAL_TOKEN", "PLACED_TOKEN_IDS", "T5FusionConfig"]
