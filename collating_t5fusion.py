"""`DataCollatorWithFusion`, which makes a batch of rows."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from transformers import BatchFeature, ProcessorMixin
from transformers.utils import logging

from .kinds_t5fusion import DEFAULT_DIM, LEXICAL_TOKEN, VectorKind, plain_kind
from .packing_t5fusion import restart_rows, share_sequences
from .rows_t5fusion import (
    IGNORED,
    NO_TEXT,
    SEVERAL_NUMBERS,
    Ids,
    RowVectors,
    Vectors,
    add_placeholders,
    as_array,
    bad_row,
    check_choice,
    field_of,
    insert_placeholders,
    vectors_of_row,
)

logger = logging.get_logger(__name__)

Row = Mapping[str, Any]


class RowText(NamedTuple):
    """The text of a row, without padding and with its placeholders."""

    ids: Ids  # (length,)
    mask: Ids  # (length,): 0 for ids that the row's own mask hides
    given_length: int  # the length with placeholders and with the padding that the row came with


class Inputs(NamedTuple):
    """The parts of a batch before padding: one entry for each row, or for each sequence that holds several rows."""

    ids: list[Ids]
    mask: list[Ids]
    labels: list[Ids] | None
    vectors: dict[str, list[Vectors]]  # by kind
    row_ids: list[Ids] | None = None  # for each id, the number of its row within the sequence, from 1
    target_row_ids: list[Ids] | None = None  # the same for labels; both are None without packing


@dataclass
class DataCollatorWithFusion:
    """Data collator that adds the placeholders of each row's vectors to the row's ids, and pads rows to one length.

    A row has `input_ids`. It may also have `attention_mask` (by default, everything but padding), `labels` and
    `lexical_embeds`: numbers, (dim,) for one vector or (vectors, dim) for several; missing, None or empty for a row
    without vectors. If a kind is one number wide, a single number is one vector. For a model with several kinds of
    vectors, `lexical_embeds` is a dict of these by the name of the kind. Lists, arrays and tensors are accepted.

    The collator puts placeholders in front of a row's ids, unless the ids hold them where the vectors belong in the
    text: for each kind, one per vector, or (if a vector becomes several tokens) one per token. Padding that ids come
    with, left or right, is removed, and the batch is padded on the right. Other columns are passed on: strings as
    lists, numbers and arrays of one shape as tensors.

    Args:
        tokenizer: The base model's tokenizer, or a `T5FusionProcessor`. The placeholders are added to it, in place, if
            they are missing. A tokenizer alone does not know the kinds of vectors: without `model`, rows then have one
            kind, and each vector becomes one token.
        pad_to_multiple_of: Rounds the padded length of ids and labels up to a multiple of this.
        label_pad_token_id: Id with which labels are padded.
        model: The model. Pass it for label smoothing: the Trainer then takes the labels out of the batch, so the batch
            needs `decoder_input_ids`, which the collator makes with the model. If `tokenizer` is not a processor, pass
            the model as well, so that the collator reads the kinds of vectors from its config.
        padding: "longest" (or True) pads each batch to its longest row. "max_length" pads every batch to the three
            sizes that follow. An `IterableDataset` with several processes needs "max_length", because accelerate joins
            the batches of all processes, and they must have one size. ("longest" works too if each row has one vector
            and all rows come padded to one length, labels included. The collator then keeps that length.)
        max_length: With `padding="max_length"`, the length of `input_ids`. It must hold the longest row with its
            placeholders: the `max_length` of the tokenizer's call, plus the `tokens` of each vector's kind (by default
            one).
        max_target_length: With `padding="max_length"`, the length of `labels`; None for `max_length`.
        max_vectors: With `padding="max_length"`, the number of vectors (of each kind) to which each row is padded with
            zeros; None for 1. If a whole batch may lack vectors, pass the processor as `tokenizer`, or pass `model`, so
            that the collator knows the width of a vector.
        packing: Whether to put several short rows of a batch into one sequence, which saves padding. A sequence is at
            most as long as the batch's longest row, or 64 tokens if all rows are shorter. Loss and gradients stay the
            same within rounding. This is for training: batches without labels are not packed, and neither are streamed
            batches that accelerate joins.

    Raises:
        ValueError: The settings contradict each other, or tokenizer and model disagree about the placeholder's id.
    """

    tokenizer: Any
    pad_to_multiple_of: int | None = None
    label_pad_token_id: int = IGNORED
    model: Any = None
    padding: str | bool = "longest"
    max_length: int | None = None
    max_target_length: int | None = None
    max_vectors: int | None = None
    packing: bool = False

    def __post_init__(self) -> None:
        self._check_padding()
        source = getattr(self.model, "config", self.tokenizer)  # A processor has kinds too.
        # Without either, the width of a vector is unknown.
        self.knows_width = hasattr(source, "kinds")
        self.kinds: dict[str, VectorKind] = source.kinds if self.knows_width else plain_kind(DEFAULT_DIM)
        # If a processor's template has no `{text}`, rows may have no vector either, as in a measurement of what the
        # vectors are worth. All other rows with neither text nor a vector are refused.
        self.reads_text = getattr(self.tokenizer, "reads_text", True)
        if isinstance(self.tokenizer, ProcessorMixin):
            self.tokenizer = self.tokenizer.tokenizer
        if not hasattr(self.tokenizer, "pad_token_id"):
            raise ValueError(
                f"`tokenizer` is of type {type(self.tokenizer).__name__}; expected a T5FusionProcessor, or the base "
                "model's tokenizer."
            )
        if self.tokenizer.pad_token_id is None:
            raise ValueError("the tokenizer has no padding token; expected one. Set `tokenizer.pad_token` first.")
        self.placeholders = add_placeholders(self.tokenizer, self.kinds)
        self.lexical_token_id = next(iter(self.placeholders.values())).token_id
        expected = getattr(getattr(self.model, "config", None), "lexical_token_id", self.lexical_token_id)
        if expected != self.lexical_token_id:
            raise ValueError(
                f"{LEXICAL_TOKEN} is token {self.lexical_token_id} of the tokenizer and {expected} of the model. Make "
                "DataCollatorWithFusion or T5FusionProcessor with the base model's tokenizer before adding tokens to "
                f"it, or build the model with `T5WithFusion(..., lexical_token_id={self.lexical_token_id})`."
            )

    def _check_padding(self) -> None:
        """Check that `padding` and the three sizes go together.

        Raises:
            ValueError: They do not, or one of them has a wrong value.
        """
        check_choice("padding", self.padding, ("longest", "max_length", True))
        sizes = {name: getattr(self, name) for name in ("max_length", "max_target_length", "max_vectors")}
        for name, size in sizes.items():
            if size is not None and self.padding != "max_length":
                raise ValueError(f"`{name}` is {size}, which needs `padding='max_length'`. Give both, or neither.")
            if size is not None and size < 1:
                raise ValueError(f"`{name}` is {size}; expected at least 1.")
        if self.padding == "max_length" and self.packing:
            raise ValueError("`packing` needs `padding='longest'`, but it is 'max_length'. Leave one out.")
        if self.padding == "max_length" and self.max_length is None:
            raise ValueError("`padding` is 'max_length'; expected a `max_length` with it, such as `max_length=128`.")

    # The return type is a dict, because the Trainer's type for collators asks for one. The batch is in fact a
    # BatchFeature, which has `.to(device)`. transformers' own collators are annotated in the same way.
    def __call__(self, features: Sequence[Row]) -> dict[str, Any]:
        """Make a batch from rows.

        Args:
            features: The rows, one or more; see the class.

        Returns:
            A [`~transformers.BatchFeature`] with:

            - `input_ids` and `attention_mask`, int64 (batch, longest).
            - `labels`, int64 (batch, longest labels), if the rows have labels.
            - `lexical_embeds`, float32: (batch, dim) if each row has one vector; otherwise (batch, most vectors, dim),
              padded with zeros; absent if no row has a vector. With `padding="max_length"`, (batch, max_vectors, dim).
              With several kinds, a dict of these by kind.
            - `decoder_input_ids`, int64, in the shape of the labels, if there are labels and the collator has a
              `model`. (A model that gets labels makes the same ids from them.)
            - `row_ids` and `target_row_ids`, int64, in the shapes of `input_ids` and `labels`, if a sequence holds
              several rows: for each token, the number of its row within the sequence, from 1; 0 for padding. The batch
              then has fewer sequences than rows, and a sequence has the vectors of its rows, one after another.

        Raises:
            ValueError: If a row is wrong, the message names its index in the batch and the field.

                - The row has neither text nor a vector; `input_ids` are not integers, or have a different number of
                  placeholders than the row has vectors; or `attention_mask` has a different length.
                - `labels` are missing where other rows have them, are not integers, or are all padding.
                - `lexical_embeds` are not finite, not of one width, of an unknown kind or, without a scale, of a norm
                  outside 1e-6 to 1e18; or no row has them, and a column of a different name holds vectors.
                - A row is longer, or has more vectors, than `padding="max_length"` allows.
                - There are no rows.
                - A column that the model does not read holds something other than strings, numbers, or arrays of one
                  shape; or rows with such a column would be packed.
        """
        if len(features) == 0:
            raise ValueError("the batch has no rows; expected one or more.")
        if not any("lexical_embeds" in row for row in features):
            _refuse_misnamed_vectors(features)
        vectors = [
            vectors_of_row(index, row.get("lexical_embeds"), self.kinds, self.knows_width)
            for index, row in enumerate(features)
        ]
        texts = [self._read_text(index, row, vectors[index]) for index, row in enumerate(features)]
        has_labels = any(row.get("labels") is not None for row in features)
        labels = (
            [self._read_labels(index, row.get("labels")) for index, row in enumerate(features)] if has_labels else None
        )
        by_kind = {name: [row[name] for row in vectors] for name in self.kinds}
        for name, kind_vectors in by_kind.items():
            _check_widths(kind_vectors, field_of(name), self.kinds[name].dim if len(self.kinds) > 1 else None)
        inputs = Inputs([text.ids for text in texts], [text.mask for text in texts], labels, by_kind)
        if self.packing and labels is not None and not _is_joined_by_accelerate():
            inputs = _packed(inputs, _other_columns(features))
        # accelerate joins only batches of one length. So rows that came padded to one length keep it.
        keep_lengths = _is_joined_by_accelerate() and self.padding != "max_length"
        lengths = [text.given_length for text in texts] if keep_lengths else None
        batch: dict[str, Any] = {
            "input_ids": self._pad("input_ids", inputs.ids, self.tokenizer.pad_token_id, lengths),
            "attention_mask": self._pad("input_ids", inputs.mask, 0, lengths),
        }
        if inputs.labels is not None:
            lengths = [len(row["labels"]) for row in features] if keep_lengths else None
            batch["labels"] = self._pad("labels", inputs.labels, self.label_pad_token_id, lengths)
            if self.model is not None:
                batch["decoder_input_ids"] = self.model.prepare_decoder_input_ids_from_labels(labels=batch["labels"])
        if inputs.row_ids is not None and inputs.target_row_ids is not None:
            batch["row_ids"] = self._pad("input_ids", inputs.row_ids, 0)
            batch["target_row_ids"] = self._pad("labels", inputs.target_row_ids, 0)
            if self.model is not None:
                start = self.model.config.decoder_start_token_id
                batch["decoder_input_ids"] = restart_rows(batch["decoder_input_ids"], batch["target_row_ids"], start)
        tensors = {name: self._stack_vectors(name, kind_vectors) for name, kind_vectors in inputs.vectors.items()}
        stacked = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        if stacked:
            batch["lexical_embeds"] = stacked if len(self.kinds) > 1 else next(iter(stacked.values()))
        for name in _other_columns(features):
            batch[name] = _stack_column(name, [row.get(name) for row in features])
        batch_feature: Any = FusionBatch(batch)
        return batch_feature

    def _read_text(self, index: int, row: Row, vectors: RowVectors) -> RowText:
        """Return a row's text, without padding and with the placeholders of the row's vectors.

        Args:
            index: Index of the row, for the message.
            row: The row.
            vectors: The row's vectors by kind.

        Raises:
            ValueError: The row has neither text nor a vector; its ids are not integers, or do not hold as many
                placeholders as its vectors need; or the mask has a different length.
        """
        ids = _read_ids(index, "input_ids", row.get("input_ids"))
        pad = self.tokenizer.pad_token_id
        if row.get("attention_mask") is None:
            mask = ids != pad
        else:
            mask = np.asarray(row["attention_mask"]) != 0
            if mask.shape != ids.shape:
                expected = f"{ids.shape}, that of its `input_ids`. Leave it out to mask the padding"
                raise bad_row(index, "attention_mask", f"shape {mask.shape}; expected {expected}")
        placeholder_ids = [placeholder.token_id for placeholder in self.placeholders.values()]
        not_text = (pad, self.tokenizer.eos_token_id, *placeholder_ids)
        counts = {name: len(row_vectors) for name, row_vectors in vectors.items()}
        # A row with vectors alone still has an id: </s>.
        is_empty = self.reads_text and np.isin(ids[mask], not_text).all() and not any(counts.values())
        if not mask.any():
            raise bad_row(index, "input_ids", "no ids; expected at least </s>. Remove the row, or tokenize its text")
        if is_empty:
            raise bad_row(index, "input_ids", NO_TEXT)
        text = _span_of_used(mask)
        text_mask = mask[text].astype(np.int64)
        placed_ids, placed_mask = insert_placeholders(ids[text], text_mask, counts, self.placeholders, index)
        return RowText(placed_ids, placed_mask, len(ids) + len(placed_ids) - len(ids[text]))

    def _read_labels(self, index: int, value: Any) -> Ids:
        """Return the labels of a row without their padding, int64 (length,).

        Raises:
            ValueError: They are missing, not integers, or all padding.
        """
        if value is None:
            raise bad_row(index, "labels", "missing, where other rows have them. Give every row labels, or no row")
        labels = _read_ids(index, "labels", value)
        is_learnt = ~np.isin(labels, (self.tokenizer.pad_token_id, IGNORED, self.label_pad_token_id))
        if not is_learnt.any():
            raise bad_row(index, "labels", "nothing but padding; expected at least </s>. Remove the row")
        target = _span_of_used(is_learnt)
        return np.where(is_learnt[target], labels[target], self.label_pad_token_id)

    def _pad(self, field: str, rows: list[Ids], value: int, lengths: list[int] | None = None) -> torch.Tensor:
        """Return `rows` padded on the right with `value`, int64 (batch, length).

        Args:
            field: Name of the field, for the message.
            rows: Token ids or mask of each row, int64 (length,).
            value: What to pad with.
            lengths: If given, pad to the largest of these instead of to the longest row.

        Raises:
            ValueError: A row is longer than `padding="max_length"` allows.
        """
        longest = max(lengths or map(len, rows))
        if self.padding == "max_length":
            name = "max_target_length" if field == "labels" and self.max_target_length else "max_length"
            longest = getattr(self, name)
            for index, row in enumerate(rows):
                if len(row) > longest:
                    count = f"{len(row)} ids" + (", placeholders included" if field == "input_ids" else "")
                    remedy = "Raise it, or have the tokenizer cut the rows shorter"
                    raise bad_row(index, field, f"{count}; expected at most {longest}, the `{name}`. {remedy}")
        if lengths is not None and len(set(lengths)) > 1:
            _warn_of_unequal_batches()
        if self.pad_to_multiple_of:
            longest = -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of  # rounded up
        padded = np.full((len(rows), longest), value, dtype=np.int64)
        for index, row in enumerate(rows):
            padded[index, : len(row)] = row
        return torch.from_numpy(padded)

    def _stack_vectors(self, kind: str, rows: list[Vectors]) -> torch.Tensor | None:
        """Return a kind's vectors of all rows, float32 (batch, dim) or (batch, vectors, dim); None if there are none.

        Raises:
            ValueError: A row has more vectors than `padding="max_length"` allows.
        """
        width = self.kinds[kind].dim if len(self.kinds) > 1 else next((row.shape[1] for row in rows if len(row)), None)
        count = max(len(row) for row in rows)  # Every row is padded to this number of vectors.
        if self.padding == "max_length":
            count, width = self.max_vectors or 1, width or (self.kinds[kind].dim if self.knows_width else None)
            for index, row in enumerate(rows):
                if len(row) > count:
                    expected = f"at most {count}. Give the collator `max_vectors={len(row)}` or more"
                    raise bad_row(index, field_of(kind), f"{len(row)} vectors; expected {expected}")
        elif count and all(len(row) == 1 for row in rows):
            return torch.from_numpy(np.concatenate(rows))
        elif count and _is_joined_by_accelerate():
            _warn_of_unequal_batches()
        if not count or width is None:
            return None
        padded = np.zeros((len(rows), count, width), dtype=np.float32)
        for index, row in enumerate(rows):
            padded[index, : len(row)] = row if len(row) else 0
        return torch.from_numpy(padded)


class FusionBatch(BatchFeature):
    """A batch whose `.to(device)` also moves the vectors of several kinds, which transformers leaves where they are."""

    def to(self, *args: Any, **kwargs: Any) -> "FusionBatch":
        """Move the batch, in place; see [`~transformers.BatchFeature.to`]."""
        super().to(*args, **kwargs)
        vectors = self.data.get("lexical_embeds")
        if isinstance(vectors, dict):
            self.data["lexical_embeds"] = {name: value.to(*args, **kwargs) for name, value in vectors.items()}
        return self


def _check_widths(rows: list[Vectors], field: str, kind_width: int | None) -> None:
    """Check that all vectors of a kind have one width.

    Args:
        rows: The vectors of each row.
        field: How the message calls them.
        kind_width: The width of the kind; None for the width of the batch's first vector.

    Raises:
        ValueError: They do not.
    """
    width = kind_width or next((row.shape[1] for row in rows if len(row)), None)
    for index, row in enumerate(rows):
        if len(row) and row.shape[1] != width:
            expected = f"{width}, as in the rows before. Encode all rows with one encoder"
            if kind_width is not None:
                expected = f"{width}, the width of this kind{SEVERAL_NUMBERS if width == 1 else ''}"
            raise bad_row(index, field, f"vectors of {row.shape[1]} numbers; expected {expected}")


def _packed(inputs: Inputs, other_columns: list[str]) -> Inputs:
    """Return the rows of a batch with short ones in shared sequences; unchanged if no two of them fit.

    Args:
        inputs: The rows, with labels.
        other_columns: Names of the columns that are not inputs of the model.

    Raises:
        ValueError: There are such columns. They have a value for each row, but a packed batch has fewer sequences than
            rows.
    """
    if other_columns:
        raise ValueError(
            f"column `{other_columns[0]}` of the batch has a value for each row, but `packing` puts several rows into "
            "one sequence. Remove the column (`remove_columns`), or leave out `packing`."
        )
    assert inputs.labels is not None  # Only training packs rows.
    shared = share_sequences([(len(ids), len(labels)) for ids, labels in zip(inputs.ids, inputs.labels, strict=True)])
    if len(shared) == len(inputs.ids):
        return inputs
    row_ids, target_row_ids = list(inputs.mask), list(inputs.labels)
    for rows in shared:
        for number, row in enumerate(rows, start=1):
            row_ids[row] = inputs.mask[row] * number  # 0 for ids that the row's own mask hides
            target_row_ids[row] = np.full_like(inputs.labels[row], number)

    def joined(column: list[Any]) -> list[Any]:
        return [np.concatenate([column[row] for row in rows]) for rows in shared]

    vectors = {}
    for name, kind_vectors in inputs.vectors.items():
        width = max(1, *(row.shape[1] for row in kind_vectors))
        # A row without vectors gets the width of the others.
        vectors[name] = joined([row.reshape(-1, width) for row in kind_vectors])
    ids, mask, labels = joined(inputs.ids), joined(inputs.mask), joined(inputs.labels)
    return Inputs(ids, mask, labels, vectors, joined(row_ids), joined(target_row_ids))


def _span_of_used(is_used: npt.NDArray[np.bool_]) -> slice:
    """Return the slice from the first to the last position that is used, which leaves the padding out."""
    (used_positions,) = is_used.nonzero()
    return slice(used_positions[0], used_positions[-1] + 1)


def _is_joined_by_accelerate() -> bool:
    """Return whether accelerate will join this batch with other processes' batches, as it does for streamed data."""
    module: Any = sys.modules.get("accelerate.data_loader")
    if module is None:
        return False
    loader = module.GradientState().active_dataloader
    joins_batches = isinstance(loader, module.DataLoaderDispatcher) and not loader.split_batches
    return bool(joins_batches and loader.state.num_processes > 1)


def _warn_of_unequal_batches() -> None:
    """Warn once that accelerate may have to join batches of different sizes, and say how to avoid it."""
    logger.warning_once(
        "The data are streamed to several processes: accelerate joins their batches, and refuses batches of different "
        "sizes. Use DataCollatorWithFusion(..., padding='max_length', max_length=...), and `max_vectors=` if rows have "
        "several vectors; or the Trainer's `accelerator_config={'dispatch_batches': False}`."
    )


def _read_ids(index: int, field: str, value: Any) -> Ids:
    """Return token ids as int64 (length,).

    Raises:
        ValueError: They are not a list of integers. The message names their row.
    """
    array = as_array(value)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        given = "missing" if value is None else f"{array.dtype} of shape {array.shape}"
        raise bad_row(index, field, f"{given}; expected a list of integers, the tokenizer's ids for one row")
    return array.astype(np.int64)


def _other_columns(rows: Sequence[Row]) -> list[str]:
    """Return the names of the columns that are not inputs of the model, in the order in which rows have them."""
    inputs = {"input_ids", "attention_mask", "labels", "lexical_embeds"}
    return list(dict.fromkeys(name for row in rows for name in row if name not in inputs))


def _refuse_misnamed_vectors(rows: Sequence[Row]) -> None:
    """Check that no column other than `lexical_embeds` holds vectors.

    Raises:
        ValueError: A column does.
    """
    for name in _other_columns(rows):
        if any(looks_like_vectors(row.get(name)) for row in rows):
            remedy = f"Rename the column: `rename_column({name!r}, 'lexical_embeds')`; or remove it."
            if not any("input_ids" in row for row in rows):
                remedy = "The rows have no `input_ids` either: make rows with `processor.rows(...)`."
            raise ValueError(
                f"column `{name}` of the batch holds vectors, but the model reads vectors from `lexical_embeds`, which "
                f"no row has. {remedy}"
            )


def looks_like_vectors(value: Any) -> bool:
    """Return whether `value` is a float array of one or two dimensions with more than one number."""
    if value is None or isinstance(value, (str, bytes, int, float)):
        return False
    try:
        array = as_array(value)
    except (TypeError, ValueError, RuntimeError):  # It cannot be an array, for example because of unequal widths.
        return False
    return array.ndim in (1, 2) and array.size > 1 and np.issubdtype(array.dtype, np.floating)


def _stack_column(name: str, values: list[Any]) -> Any:
    """Return a column of strings as a list, and a column of numbers or arrays of one shape as a tensor (batch, ...).

    Raises:
        ValueError: The column holds something else.
    """
    if all(isinstance(value, str) for value in values):
        return values
    try:
        return torch.stack([torch.as_tensor(value) for value in values])
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"column `{name}` of the batch does not hold a string, a number or an array of one shape in every row. "
            "Remove it from the data set (`remove_columns`)."
        ) from None


__all__ = ["DataCollatorWithFusion"]
