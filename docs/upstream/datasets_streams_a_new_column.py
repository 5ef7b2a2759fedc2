"""datasets: streaming JSONL raises a CastError if a column first appears after 10 MB. Reading it whole works."""

import json
import tempfile
from pathlib import Path

import datasets
from datasets import load_dataset

with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "rows.jsonl"
    rows = [{"name": "a", "text": "x" * 300}] * 40_000 + [{"name": "b", "text": "y", "note": "z"}]
    file.write_text("\n".join(map(json.dumps, rows)))
    try:
        outcome = f"{sum(1 for _ in load_dataset('json', data_files=str(file), split='train', streaming=True))} rows"
    except Exception as error:
        outcome = type(error).__name__
    print(f"datasets {datasets.__version__}: {outcome}, expected {len(rows)} rows")
