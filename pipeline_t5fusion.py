"""`T5FusionPipeline`, which generates texts from texts and their vectors.

`transformers.pipeline` builds it for a saved model:

    from transformers import pipeline

    describe = pipeline(model="me/describer", trust_remote_code=True)
    describe("app_config")  # [{"generated_text": "..."}]
"""

from collections.abc import Iterator, Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any

from transformers import Pipeline
from transformers.utils import logging

from .collating_t5fusion import DataCollatorWithFusion, looks_like_vectors
from .kinds_t5fusion import VectorKind, counted
from .processing_t5fusion import GIVEN_VECTORS, T5FusionProcessor

if TYPE_CHECKING:
    # transformers 5.0 copies only the files that this file imports itself. So the files that those files import are
    # named here. These imports never run.
    from .arguments_t5fusion import read_vectors  # noqa: F401
    from .configuration_t5fusion import T5FusionConfig  # noqa: F401
    from .naming_t5fusion import FusedName  # noqa: F401
    from .packing_t5fusion import share_sequences  # noqa: F401
    from .rows_t5fusion import Vectors  # noqa: F401
    from .tokenizing_t5fusion import tokenize  # noqa: F401

logger = logging.get_logger(__name__)

COLUMNS = ("text", "lexical_texts", "lexical_embeds")  # the columns of a row that are read
# The defaults of `t5fusion train` and `generate`. This file travels without those commands, so it repeats them.
MAX_SOURCE = 128  # tokens of an input
DECODING = {"max_new_tokens": 64, "do_sample": False}
LENGTH_OPTIONS = ("max_length", "max_new_tokens", "generation_config")  # Each overrides `max_new_tokens` above.


class T5FusionPipeline(Pipeline):
    """Pipeline that generates a text for each row: `pipeline(model="me/describer", trust_remote_code=True)`.

    The processor makes the vectors by its recipe, unless they are given. By default, decoding is greedy, up to 64 new
    tokens, and inputs are cut to 128 tokens, the default of `t5fusion train`.

    Args:
        model: A fused model, with or without an adapter.
        tokenizer: The tokenizer of a model that has no processor. Vectors are then given with each call.
        processor: The model's `T5FusionProcessor`.
        **options: Options of [`~transformers.Pipeline`], such as `device` and `batch_size`; and options of a call, as
            defaults for all calls.

    Raises:
        ValueError: Neither a processor nor a tokenizer is given.
    """

    _load_processor = True
    _load_tokenizer = _load_feature_extractor = _load_image_processor = _load_video_processor = False
    _pipeline_calls_generate = False  # True would add defaults that differ between releases of transformers.

    def __init__(self, model: Any, tokenizer: Any = None, processor: Any = None, **options: Any) -> None:
        if processor is None and tokenizer is None:
            raise ValueError("the pipeline has no processor. Pass `processor=`, a T5FusionProcessor, or `tokenizer=`.")
        if processor is None:
            vector_fields = {"lexical_dim": model.config.lexical_dim, "vectors": model.config.vectors}
            recipe: dict[str, Any] = GIVEN_VECTORS | vector_fields
            processor = T5FusionProcessor(tokenizer, **recipe)
        super().__init__(model=model.eval(), tokenizer=processor.tokenizer, processor=processor, **options)
        self._collate = DataCollatorWithFusion(processor)

    def __call__(
        self, inputs: Any = None, lexical_texts: Any = None, lexical_embeds: Any = None, **options: Any
    ) -> Any:
        """Generate a text for each input.

        Args:
            inputs: A text, or a row: a dict with `text` and, optionally, `lexical_embeds` or `lexical_texts`. Or
                several texts or rows: a list, a dict of columns (`dataset[:8]`), a `datasets.Dataset`, a generator. If
                the processor's template has no `{text}`, rows need no `text`, and `inputs` may be left out.
            lexical_texts, lexical_embeds: As in a call of the processor, for a single text or a list of texts.
                `lexical_embeds=False` gives the model no vectors.
            **options: `batch_size`; `max_source`, the number of tokens to which inputs are cut (128; None for no cut);
                and those of `model.generate`: `max_new_tokens`, `num_beams`, `num_return_sequences`, ...

        Returns:
            For one input, `[{"generated_text": ...}]`, with a dict for each of `num_return_sequences`. For a list or
            columns, a list of dicts, one per input; with several sequences, a list of lists of dicts. For a data set
            or a generator, an iterator over the results of single inputs.

        Raises:
            ValueError: An input is neither a text nor a row; a row holds vectors by a different name; columns or
                arguments differ in length; or a call of the processor raises it.
            ImportError, OSError: The processor cannot make vectors; see `T5FusionProcessor.encode`.
        """
        if hasattr(inputs, "column_names"):  # a `datasets.Dataset`
            inputs = (row for row in inputs)
        if not self.processor.reads_text:
            inputs = _with_empty_texts(inputs, lexical_texts, lexical_embeds, self.processor.kinds)
        if isinstance(inputs, Mapping) and not isinstance(inputs.get("text"), str):
            inputs = list(_rows_of_columns(inputs))
        given = {"lexical_texts": lexical_texts, "lexical_embeds": lexical_embeds}
        given = {name: value for name, value in given.items() if value is not None}
        if isinstance(inputs, (list, tuple)) and isinstance(lexical_embeds, Mapping):
            given["lexical_embeds"] = _rows_by_kind(lexical_embeds, len(inputs))
        holds_several = hasattr(inputs, "__iter__") or hasattr(inputs, "__getitem__")
        if isinstance(inputs, (str, Mapping)) or not holds_several:
            return super().__call__(_read_row(inputs, given), **options)
        if not isinstance(inputs, (list, tuple)):
            if any(values is not False for values in given.values()):
                names = " and ".join(f"`{name}`" for name in given)
                raise ValueError(
                    f"{names} cannot be given as an argument for a data set or a generator. Give each row as a dict "
                    f"with `text` and {names}."
                )
            return super().__call__((_read_row(row, given) for row in inputs), **options)
        if not inputs:
            return []
        outputs = super().__call__(list(_rows_of_list(inputs, given)), **options)
        has_one_each = all(len(sequences) == 1 for sequences in outputs)
        return [sequences[0] for sequences in outputs] if has_one_each else outputs

    def _sanitize_parameters(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        return {}, options, {}

    def preprocess(self, row: Any, **parameters: Any) -> dict[str, Any]:
        # Rows become inputs in `_forward`, so that the encoder and the collator see a whole batch.
        return {"rows": [row]}

    def _forward(self, inputs: dict[str, Any], max_source: int | None = MAX_SOURCE, **options: Any) -> dict[str, Any]:
        rows = list(_flat(inputs["rows"]))
        if not any(name in options for name in LENGTH_OPTIONS):
            options = {"max_new_tokens": DECODING["max_new_tokens"], **options}
        if "generation_config" not in options:
            options = {"do_sample": DECODING["do_sample"], **options}
        batch: Any = self._collate(self._inputs(rows, max_source))
        generated_ids = self.model.generate(**batch.to(self.device), **options)
        return {"generated_ids": generated_ids.reshape(len(rows), -1, generated_ids.shape[-1])}

    def _inputs(self, rows: list[dict[str, Any]], max_source: int | None) -> list[dict[str, Any]]:
        """Return the model's inputs for rows, in the rows' order. The rows of a group share a call of the processor."""
        inputs: list[Any] = [None] * len(rows)
        if self.processor.lexical_source == "text":  # For a null in a column of vectors, the encoder makes the vector.
            rows = [{name: value for name, value in row.items() if value is not None} for row in rows]
        # In a group, all rows have the same columns, and `lexical_embeds` is False in all of them or in none.
        groups = [(tuple(sorted(row)), row.get("lexical_embeds") is False) for row in rows]
        for group in dict.fromkeys(groups):
            indices = [index for index, other in enumerate(groups) if other == group]
            columns = {name: [rows[index][name] for index in indices] for name in rows[indices[0]]}
            _, without_vectors = group
            if without_vectors:
                columns["lexical_embeds"] = False  # type: ignore[assignment]
            for index, row in zip(indices, self.processor.rows(**columns, max_length=max_source), strict=True):
                inputs[index] = row
        if max_source is not None and self.processor.reads_text:
            lengths = [len(row["input_ids"]) for row in inputs]
            texts = [row["text"] for row, length in zip(rows, lengths, strict=True) if length >= max_source]
            self._warn_of_cut(texts, max_source)
        return inputs

    def _warn_of_cut(self, texts: list[str], max_source: int) -> None:
        """Warn once if one of `texts` has more than `max_source` tokens.

        Args:
            texts: Texts whose inputs have `max_source` tokens, perhaps because they were cut.
            max_source: The number of tokens to which inputs are cut.
        """
        uncut = self.processor.rows(texts, lexical_embeds=False) if texts else []
        if any(len(row["input_ids"]) > max_source for row in uncut):
            logger.warning_once(
                f"Inputs of more than {max_source} tokens are cut. Call the pipeline with `max_source=` to change the "
                "limit; None cuts nothing."
            )

    def postprocess(self, outputs: dict[str, Any], **parameters: Any) -> list[dict[str, str]]:
        texts = self.processor.batch_decode(outputs["generated_ids"][0], skip_special_tokens=True)
        return [{"generated_text": text} for text in texts]

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Save the model and the processor in a folder, from which `transformers.pipeline` opens them.

        Args:
            save_directory: The folder.
            **kwargs: Keywords of [`~transformers.Pipeline.save_pretrained`].
        """
        super().save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)


def _with_empty_texts(inputs: Any, lexical_texts: Any, lexical_embeds: Any, kinds: Mapping[str, VectorKind]) -> Any:
    """Return the inputs of a model that reads no text, with an empty text in each row that has none.

    A dict without `text` is one row if it holds one vector, or one text to make it from. Otherwise it is a dict of
    columns.

    Args:
        inputs, lexical_texts, lexical_embeds: As in a call of the pipeline.
        kinds: The processor's kinds by name.
    """
    if inputs is None:
        first, width = _first_column(lexical_embeds if lexical_texts is None else lexical_texts, kinds)
        return "" if first is None or _is_of_one_row(first, width) else [""] * len(first)
    if isinstance(inputs, Mapping) and "text" not in inputs:
        first, width = _first_column(inputs.get("lexical_texts", inputs.get("lexical_embeds")), kinds)
        if first is None or _is_of_one_row(first, width):
            return {"text": "", **inputs}
        columns = {"text": [""] * len(first), **inputs}
        if isinstance(by_kind := columns.get("lexical_embeds"), Mapping):
            columns["lexical_embeds"] = _rows_by_kind(by_kind, len(first))
        return columns
    if isinstance(inputs, (str, Mapping)) or not hasattr(inputs, "__iter__"):
        return inputs
    rows = ({"text": "", **row} if isinstance(row, Mapping) else row for row in inputs)
    return list(rows) if isinstance(inputs, (list, tuple)) else rows


def _first_column(given: Any, kinds: Mapping[str, VectorKind]) -> tuple[Any, int | None]:
    """Return the vectors of one kind, or the texts to make them from, as given; and the width of the kind.

    The kind is the first one that is given. The width is None for an unknown kind, which the processor will refuse.
    """
    if not isinstance(given, Mapping):
        return given, next(iter(kinds.values())).dim
    name = next(iter(given), "")
    return given.get(name), kinds[name].dim if name in kinds else None


def _is_of_one_row(given: Any, width: int | None) -> bool:
    """Return whether vectors, or the texts to make them from, are those of one row: one vector, or one text.

    Several numbers of a kind that is one number wide are the vectors of several rows.
    """
    if given is False or isinstance(given, (str, Real)):
        return True
    if hasattr(given, "ndim") and given.ndim != 1:
        return bool(given.ndim == 0)
    is_list_of_numbers = len(given) > 0 and (hasattr(given, "ndim") or isinstance(given[0], Real))
    return is_list_of_numbers and (width != 1 or len(given) == 1)


def _flat(rows: list[Any]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a batch. transformers collates a batch to a list of lists of one row each."""
    for row in rows:
        yield from row if isinstance(row, list) else [row]


def _read_row(row: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Return the columns of a text or a row that the processor reads.

    Columns that are None are left out, except `lexical_embeds` of a dict, which stays None if no other column says
    what the vectors are made from; see `_inputs` for what None means.

    Args:
        row: A text, or a dict with `text`.
        given: Columns that were given as arguments beside the row. They replace columns of the row.

    Raises:
        ValueError: `row` is neither a text nor a row, or holds vectors by a different name.
    """
    columns = {"text": row} if isinstance(row, str) else row
    if not isinstance(columns, Mapping) or not isinstance(columns.get("text"), str):
        raise _not_a_row_error(row)
    columns_read = {name: columns[name] for name in COLUMNS if columns.get(name) is not None} | given
    if not columns_read.keys() & {"lexical_texts", "lexical_embeds"}:
        for name in columns:
            if name not in COLUMNS and looks_like_vectors(columns[name]):
                raise ValueError(
                    f"column `{name}` of an input holds vectors, but the pipeline reads vectors from `lexical_embeds`. "
                    f"Rename the column: `rename_column({name!r}, 'lexical_embeds')`; or remove it."
                )
    if "lexical_embeds" in columns and not columns_read.keys() & {"lexical_texts", "lexical_embeds"}:
        columns_read["lexical_embeds"] = None
    return columns_read


def _not_a_row_error(value: Any) -> ValueError:
    """Return the error for an input that is neither a text nor a row."""
    is_dict = isinstance(value, Mapping)
    found = f"a dict with {', '.join(map(str, value)) or 'nothing'}" if is_dict else type(value).__name__
    return ValueError(
        f"an input of the pipeline is {found}; expected a string, or a dict with `text` and, if it has vectors, "
        "`lexical_embeds`. Rename the columns of a data set: `rename_column(NAME, 'text')`."
    )


def _rows_of_columns(columns: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a dict of columns, such as `dataset[:8]`. Columns that are None or False hold it in each row.

    Raises:
        ValueError: There is no column `text`, or the columns differ in length.
    """
    texts = columns.get("text")
    if texts is None or isinstance(texts, Mapping):
        raise _not_a_row_error(columns)
    columns = {
        name: [values] * len(texts) if values is None or values is False else values for name, values in columns.items()
    }
    if isinstance(by_kind := columns.get("lexical_embeds"), Mapping):
        columns["lexical_embeds"] = _rows_by_kind(by_kind, len(texts))
    counts = {name: len(values) for name, values in columns.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"the columns differ in length ({counts}); expected one item per text in each.")
    for index in range(len(texts)):
        yield {name: values[index] for name, values in columns.items()}


def _rows_by_kind(lexical_embeds: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Return a dict of vectors by kind for each of `count` rows.

    Args:
        lexical_embeds: For each kind, a list or an array with one item per row.
        count: Number of rows.

    Raises:
        ValueError: A kind has a different number of items.
    """
    for name, values in lexical_embeds.items():
        if len(values) != count:
            raise ValueError(
                f"`lexical_embeds[{name!r}]` has {counted(len(values), 'item')} for {counted(count, 'text')}; expected "
                "one per text."
            )
    return [{name: values[index] for name, values in lexical_embeds.items()} for index in range(count)]


def _rows_of_list(inputs: Any, given: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a list of texts or rows, each with its item of the columns that were given beside the list.

    Raises:
        ValueError: A column has a different length than the list, or an input is neither a text nor a row.
    """
    for name, values in given.items():
        if values is not False and len(values) != len(inputs):
            found = f"{counted(len(values), 'item')} for {counted(len(inputs), 'text')}"
            raise ValueError(f"`{name}` has {found}; expected one per text.")
    for index, row in enumerate(inputs):
        yield _read_row(row, {name: values if values is False else values[index] for name, values in given.items()})


__all__ = ["T5FusionPipeline"]
