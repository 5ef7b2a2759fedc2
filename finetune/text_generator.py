"""A trained model that is loaded once, and generates the texts of rows that the caller reads and writes."""

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from ..common.run_folder import find_trained
from ..engines.choosing import load_engine
from ..engines.names import REFERENCE
from .data import Columns, check_trained_columns
from .decoding import Decoding, seed_of_chunk
from .generation import Advance, generate_chunk, generate_texts
from .inputs import check_text_column, check_vector_columns, make_inputs
from .record import trained_columns
from .streaming import Chunk
from .trained_model import columns_for, load_on_device


class TextGenerator:
    """A trained model that generates a text for each row, as `t5fusion generate` does.

    It is for programs that read, share and write the rows themselves, such as `examples/ray_generate.py`:

        generator = TextGenerator("runs/mine")
        texts = generator(Dataset.from_list([{"filename": "app_config"}]))

    A row's text does not depend on the other rows, apart from rounding. To get the texts of `t5fusion generate` to the
    bit, pass the rows of the file in its order, 512 at a time.

    Args:
        name: Folder that training saved, bundle, or id of a repository on the Hub.
        columns: The columns to read; None for the columns of the training. `columns.target` is ignored.
        vectors: Whether to give the model vectors.
        revision: Branch, tag or commit of the repository.
        **decoding: As for `generate_file`: `num_beams`, `max_new_tokens`, `batch_size`, `settings`, `seed`, `engine`.

    Raises:
        ValueError: An argument cannot be used, or the model is damaged.
        OSError: The model or its base model cannot be read.
    """

    def __init__(
        self,
        name: str | Path,
        columns: Columns | None = None,
        *,
        vectors: bool = True,
        revision: str | None = None,
        **decoding: Any,
    ) -> None:
        columns = columns or columns_for(name, revision=revision, vectors=vectors)
        self.columns, self.vectors, self.decoding = columns._replace(target=None), vectors, Decoding(**decoding)
        self.options = self.decoding.arguments()
        self.folder = find_trained(str(name), revision)
        model, self.processor, self.limits = load_on_device(self.folder)
        check_text_column(self.columns, self.processor)
        if vectors:
            check_vector_columns(self.columns, self.processor, trained_columns(self.folder))
        self.model = load_engine(model, self.decoding.engine)
        self.engine = getattr(self.model, "engine", REFERENCE)

    def __call__(self, rows: Dataset, first: int = 0) -> list[str | None]:
        """Return the text of each row, None for a row that lacks a text.

        Args:
            rows: The rows. Columns that the model does not read are ignored.
            first: Number of the first row, for errors and, with `do_sample`, for the random numbers.

        Raises:
            ValueError: A column is missing, or holds anything but texts (or vectors).
        """
        check_trained_columns(rows, self.columns, trained_columns(self.folder))
        texts, _ = generate_chunk(Chunk(first, rows), self.columns, self.inputs, self.generate, lambda rows: None)
        return texts

    def inputs(self, rows: Dataset, numbers: list[int], counts: Counter[str]) -> list[dict]:
        """Return the model's inputs for rows that have a text, as `make_inputs` does."""
        return make_inputs(
            rows, self.columns, self.processor, self.limits, self.vectors, keep=False, numbers=numbers, counts=counts
        )

    def generate(self, inputs: list[dict], first: int, advance: Advance) -> list[str]:
        """Return the texts for inputs, as `generate_texts` does. `first` is the number of their chunk's first row."""
        device = self.model.device
        with torch.random.fork_rng([] if device.type == "cpu" else [device]):
            torch.manual_seed(seed_of_chunk(self.decoding.seed, first))
            return generate_texts(self.model, inputs, self.processor, self.decoding.batch_size, advance, **self.options)
