"""The configuration of `T5WithFusion`: T5's config, and fields for the vectors that the model reads."""

from typing import Any

from transformers import T5Config
from transformers.models.auto import modeling_auto

from .kinds_t5fusion import DEFAULT_DIM, LEXICAL_TOKEN, VectorKind, check_positive, list_kinds, plain_kind, read_kinds

T5_TOKENS = 32100  # Every T5, T5 v1.1 and FLAN-T5 has this many tokens, and 32,128 rows in its embedding table.
# The ids that tokenizers of this process gave to `<lexical>`. The model reads them only to report a mismatch.
PLACED_TOKEN_IDS: set[int] = set()


class T5FusionConfig(T5Config):
    """Configuration of a T5 that reads vectors beside its text.

    Args:
        lexical_dim: Width of a vector. The default, 384, is that of all-MiniLM-L6-v2. With `vectors`, leave it out: it
            is the width of the first kind.
        lexical_token_id: Id of the placeholder `<lexical>` in `input_ids`. It needs no row in the embedding table. The
            default is the first id that T5's tokenizer leaves free, or `vocab_size` if that is smaller; for a larger
            tokenizer, such as mT5's, pass `len(tokenizer)`. Further kinds of vectors take the ids after it.
        vectors: A declaration of the kinds of vectors (it holds no vectors), in the order in which they stand before
            the text: a name for each, with a width or a [`VectorKind`], such as
            `{"item": 64, "image": VectorKind(512, tokens=8, projector="mlp")}`. A width means raw numbers,
            `VectorKind(width, scale="standard")`. None means one kind, called "lexical", without a scale: its vectors
            are `lexical_dim` wide, and each becomes one token.
        vector_dropout: The probability with which a row loses its vectors in a training step, so that the model also
            learns to answer without them.
        backbone: Hub id or folder of the base model that this model was built from; None for a model built from
            scratch.
        backbone_revision: Commit of the base model, if it came from the Hub.
        weights_from_backbone: If true, this checkpoint stores no base weights: load them from `backbone`.
        adapter_beside: If true, the folder or repository of this config also holds an adapter, and the model is
            incomplete without it.
        **kwargs: All arguments of [`~transformers.T5Config`].

    Raises:
        ValueError: `lexical_dim` or `lexical_token_id` is not a positive integer, `vectors` does not describe kinds of
            vectors, its first width is not `lexical_dim`, or `vector_dropout` is not from 0 to 1.
    """

    model_type = "t5_fusion"
    vectors: list[dict[str, Any]] | None = None
    vector_dropout: float = 0.0

    def __init__(
        self,
        lexical_dim: int = DEFAULT_DIM,
        lexical_token_id: int | None = None,
        backbone: str | None = None,
        backbone_revision: str | None = None,
        weights_from_backbone: bool = False,
        adapter_beside: bool = False,
        vectors: Any = None,
        vector_dropout: float = 0.0,
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
        self._set_kinds(lexical_dim, vectors)
        if lexical_token_id is None:
            lexical_token_id = min(T5_TOKENS, self.vocab_size)
        self.lexical_token_id = _check_field("lexical_token_id", lexical_token_id)
        is_number = isinstance(vector_dropout, (int, float)) and not isinstance(vector_dropout, bool)
        if not is_number or not 0 <= vector_dropout <= 1:
            raise ValueError(f"T5FusionConfig: `vector_dropout` is {vector_dropout!r}; expected a number from 0 to 1.")
        if vector_dropout > 0:  # config.json holds the field only if it matters.
            self.vector_dropout = vector_dropout
        self.backbone = backbone
        self.backbone_revision = backbone_revision
        self.weights_from_backbone = weights_from_backbone
        self.adapter_beside = adapter_beside

    def _set_kinds(self, lexical_dim: int, vectors: Any) -> None:
        """Set `lexical_dim` and `vectors`. One plain kind called "lexical" is the same as no `vectors`.

        Raises:
            ValueError: A value is wrong, or the two contradict each other.
        """
        if vectors is None:
            self.lexical_dim = _check_field("lexical_dim", lexical_dim)
            return
        kinds = read_kinds(vectors)
        first_name, first = next(iter(kinds.items()))
        if lexical_dim not in (DEFAULT_DIM, first.dim):  # The default may just have been left in.
            raise ValueError(
                f"T5FusionConfig: `lexical_dim` is {lexical_dim!r}, but the first kind in `vectors`, {first_name!r}, "
                f"is {first.dim} wide. Leave `lexical_dim` out."
            )
        self.lexical_dim = first.dim
        if kinds != plain_kind(first.dim):
            self.vectors = list_kinds(kinds)

    @property
    def kinds(self) -> dict[str, VectorKind]:
        """The kinds of vectors by name, in the order in which they stand before the text."""
        return plain_kind(self.lexical_dim) if self.vectors is None else read_kinds(self.vectors)

    @property
    def placeholder_ids(self) -> dict[str, int]:
        """The id of the placeholder of each kind: `lexical_token_id` and the ids after it."""
        return {name: self.lexical_token_id + position for position, name in enumerate(self.kinds)}

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


def _check_field(name: str, value: Any) -> int:
    """Return the value of a field, which must be a positive integer.

    Raises:
        ValueError: It is something else.
    """
    try:
        return check_positive(name, value)
    except ValueError as error:
        raise ValueError(f"T5FusionConfig: {error}") from None


# `transformers serve` loads only the model types that this table lists.
getattr(modeling_auto, "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES", {}).setdefault(
    T5FusionConfig.model_type, "T5WithFusion"
)

__all__ = ["LEXICAL_TOKEN", "PLACED_TOKEN_IDS", "T5FusionConfig"]
