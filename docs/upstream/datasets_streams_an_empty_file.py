"""datasets: streaming an empty JSONL file raises a bare StopIteration."""

import tempfile
from pathlib import Path

import datasets
from datasets import load_dataset

with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "rows.jsonl"
    file.touch()
    try:
        outcome = f"{sum(1 for _ in load_dataset('json', data_files=str(file), split='train', streaming=True))} rows"
    except BaseException as error:
        outcome = repr(error)
    print(f"datasets {datasets.__version__}: {outcome}, expected no rows, or an error that says so")
