"""datasets: streaming JSONL ends in a CastError where a column first appears after ten megabytes; not so read whole."""

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
        how = f"{sum(1 for _ in load_dataset('json', data_files=str(file), split='train', streaming=True))} rows"
    except Exception as error:
        how = type(error).__name__
    print(f"datasets {datasets.__version__}: {how}, due {len(rows)} rows")
