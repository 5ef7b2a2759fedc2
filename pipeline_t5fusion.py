"""`T5FusionPipeline`: texts, with or without vectors, to texts. `transformers.pipeline` builds it for a saved model.

from transformers import pipeline

describe = pipeline(model="me/describer", trust_remote_code=True)
describe("app_config")  # [{"generated_text": "..."}]
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from transformers import Pipeline
from transformers.utils import logging

from .collating_t5fusion import DataCollatorWithFusion, looks_like_vectors
from .processing_t5fusion import T5FusionProcessor

if TYPE_CHECKING:
    # What the files above import: transformers 5.0 copies only the files that this one imports itself.
    from .configuration_t5fusion import T5FusionConfig  # noqa: F401
    from .naming_t5fusion import FusedName  # noqa: F401
    from .rows_t5fusion import Vectors  # noqa: F401

logger = logging.get_logger(__name__)

COLUMNS = ("text", "lexical_texts", "lexical_embeds")  # what a row may hold; other columns are not read
MAX_SOURCE = 128  # tokens of an input, as in `t5fusion generate`
DECODING = {"max_new_tokens": 64, "do_sample": False}  # as in `t5fusion generate`
LENGTHS = ("max_length", "max_new_tokens", "generation_config")  # each of them says when to stop


class T5FusionPipeline(Pipeline):
    """Generates a text for each row: `pipeline(model="me/describer", trust_remote_code=True)`.

    Vectors are made by the recipe of the model's processor, unless they are given. By default, decoding is greedy, up
    to 64 new tokens, and inputs are cut to 128 tokens, as in `t5fusion generate`.

    Args:
        model: A fused model, with or without an adapter.
        tokenizer: The tokenizer of a model that has no processor. Its vectors are given with each call.
        processor: The model's `T5FusionProcessor`.
        **options: Those of [`~transformers.Pipeline`], such as `device` and `batch_size`, and those of a call, which
            then hold for all calls.

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
            given = {"lexical_encoder": None, "lexical_source": "given", "lexical_dim": model.config.lexical_dim}
            processor = T5FusionProcessor(tokenizer, **given)
        super().__init__(model=model.eval(), tokenizer=processor.tokenizer, processor=processor, **options)
        self._collate = DataCollatorWithFusion(processor)

    def __call__(self, inputs: Any, lexical_texts: Any = None, lexical_embeds: Any = None, **options: Any) -> Any:
        """Generate a text for each input.

        Args:
            inputs: A text, or a row: a dict with `text` and, if you like, `lexical_embeds` or `lexical_texts`. Or many
                of them: a list, a dict of columns (`dataset[:8]`), a `datasets.Dataset`, a generator.
            lexical_texts, lexical_embeds: As in a call of the processor, for texts in a list or a single text.
                `lexical_embeds=False` gives the model no vectors.
            **options: `batch_size`; `max_source`, the tokens to which inputs are cut (128; None for no cut); and
                those of `model.generate`: `max_new_tokens`, `num_beams`, `num_return_sequences`, ...

        Returns:
            For one input, `[{"generated_text": ...}]`, with a dict for each of `num_return_sequences`. For a list or
            columns, a list with a dict per input, or, with several sequences, a list of dicts per input. For a data set
            or a generator, an iterator over what one input gives.

        Raises:
            ValueError: An input is neither a text nor a row; a row holds vectors by another name; or what a call of the
                processor raises.
        """
        if hasattr(inputs, "column_names"):  # a `datasets.Dataset`
            inputs = (row for row in inputs)
        if isinstance(inputs, Mapping) and not isinstance(inputs.get("text"), str):
            inputs = list(_rows_of_columns(inputs))
        given = {"lexical_texts": lexical_texts, "lexical_embeds": lexical_embeds}
        given = {name: value for name, value in given.items() if value is not None}
        if isinstance(inputs, (str, Mapping)) or (
            not hasattr(inputs, "__iter__") and not hasattr(inputs, "__getitem__")
        ):
            return super().__call__(_row(inputs, given), **options)
        if not isinstance(inputs, (list, tuple)):
            if any(values is not False for values in given.values()):
                raise ValueError(f"{', '.join(given)} cannot be given beside a stream. Put each row's into its dict.")
            return super().__call__((_row(row, given) for row in inputs), **options)
        if not inputs:
            return []
        outputs = super().__call__(list(_rows_of_list(inputs, given)), **options)
        return [one for (one,) in outputs] if all(len(output) == 1 for output in outputs) else outputs

    def _sanitize_parameters(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        return {}, options, {}

    def preprocess(self, row: Any, **parameters: Any) -> dict[str, Any]:
        # Rows become inputs in `_forward`, so that the encoder and the collator see a whole batch.
        return {"rows": [row]}

    def _forward(self, inputs: dict[str, Any], max_source: int | None = MAX_SOURCE, **options: Any) -> dict[str, Any]:
        rows = list(_flat(inputs["rows"]))
        if not any(name in options for name in LENGTHS):
            options = {"max_new_tokens": DECODING["max_new_tokens"], **options}
        if "generation_config" not in options:
            options = {"do_sample": DECODING["do_sample"], **options}
        batch: Any = self._collate(self._inputs(rows, max_source))
        written = self.model.generate(**batch.to(self.device), **options)
        return {"written": written.reshape(len(rows), -1, written.shape[-1])}

    def _inputs(self, rows: list[dict[str, Any]], max_source: int | None) -> list[dict[str, Any]]:
        """Return the model's inputs for rows, in their order. Rows with the same columns share a call."""
        inputs: list[Any] = [None] * len(rows)
        kinds = [(*sorted(row), row.get("lexical_embeds") is False) for row in rows]
        for kind in dict.fromkeys(kinds):
            indices = [index for index, other in enumerate(kinds) if other == kind]
            columns = {name: [rows[index][name] for index in indices] for name in rows[indices[0]]}
            if kind[-1]:
                columns["lexical_embeds"] = False  # type: ignore[assignment]
            for index, row in zip(indices, self.processor.rows(**columns, max_length=max_source), strict=True):
                inputs[index] = row
        if max_source is not None:
            self._warn_of_cut(
                [row["text"] for row, made in zip(rows, inputs, strict=True) if len(made["input_ids"]) >= max_source],
                max_source,
            )
        return inputs

    def _warn_of_cut(self, texts: list[str], max_source: int) -> None:
        """Warn once if a text has more than `max_source` tokens. (A shorter one is never as long as that.)"""
        uncut = self.processor.rows(texts, lexical_embeds=False) if texts else []
        if any(len(row["input_ids"]) > max_source for row in uncut):
            logger.warning_once(
                f"Inputs of more than {max_source} tokens are cut to so many. Call the pipeline with `max_source=` to "
                "change that; None cuts nothing."
            )

    def postprocess(self, outputs: dict[str, Any], **parameters: Any) -> list[dict[str, str]]:
        texts = self.processor.batch_decode(outputs["written"][0], skip_special_tokens=True)
        return [{"generated_text": text} for text in texts]

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Save the model and the processor in a folder, from which `pipeline` opens them."""
        super().save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)


def _flat(rows: list[Any]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a batch: transformers collates the lists of one row each to a list of lists."""
    for row in rows:
        yield from row if isinstance(row, list) else [row]


def _row(row: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Return the columns of a text or a row that the processor reads; those that are None are left out.

    Raises:
        ValueError: It is neither a text nor a row, or it holds vectors by another name.
    """
    columns = {"text": row} if isinstance(row, str) else row
    if not isinstance(columns, Mapping) or not isinstance(columns.get("text"), str):
        holds = (
            f"a dict with {', '.join(map(str, row)) or 'nothing'}" if isinstance(row, Mapping) else type(row).__name__
        )
        raise ValueError(
            f"an input of the pipeline is {holds}; expected a string, or a dict with `text` and, if it has vectors, "
            "`lexical_embeds`. Rename the columns of a data set: `rename_column(NAME, 'text')`."
        )
    known = {name: columns[name] for name in COLUMNS if columns.get(name) is not None} | given
    if not known.keys() & {"lexical_texts", "lexical_embeds"}:
        for name in columns:
            if name not in COLUMNS and looks_like_vectors(columns[name]):
                raise ValueError(
                    f"column `{name}` of an input holds vectors, and the pipeline reads those of `lexical_embeds`. "
                    f"Rename it: `rename_column({name!r}, 'lexical_embeds')`; or remove it."
                )
    return known


def _rows_of_columns(columns: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a dict of columns, as `dataset[:8]` gives."""
    texts = columns.get("text")
    if texts is None or isinstance(texts, Mapping):
        yield _row(columns, {})  # which raises
    counts = {name: len(values) for name, values in columns.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"the columns differ in length ({counts}); expected one item per text in each.")
    for index in range(len(texts or ())):
        yield {name: values[index] for name, values in columns.items()}


def _rows_of_list(inputs: Any, given: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a list of texts or rows, each with its own of what was given beside it."""
    for name, values in given.items():
        if values is not False and len(values) != len(inputs):
            raise ValueError(f"`{name}` has {len(values)} items for {len(inputs)} texts; expected one per text.")
    for index, row in enumerate(inputs):
        yield _row(row, {name: values if values is False else values[index] for name, values in given.items()})


__all__ = ["T5FusionPipeline"]
