"""Generate a text for each row of a very large set, on Ray. It reads Parquet or JSONL files, and writes Parquet files.

pip install "ray[data]" aiohttp
python examples/ray_generate.py runs/mine scored rows/*.parquet --workers 2

The rows keep their columns, and get a column "output" with the generated texts. The model is a run folder, a bundle or
an id on the Hub. It reads the columns of its training, or those that you name. The texts are those of
`t5fusion generate`.

The script uses the cluster that RAY_ADDRESS names, or starts Ray on this machine. On a cluster, all machines must have
t5fusion and access to the model, the files and the output. The workers must leave a CPU for reading and writing. With
`--gpus 1`, each worker gets a GPU.

If a worker dies, Ray starts a new one, which generates the unfinished rows again. Each row is written once, but not in
the order of the files.
"""

import argparse
import os

import pyarrow as pa
import ray
from datasets import Dataset

from t5fusion.finetune import TextGenerator, columns_for

ROWS_PER_TASK = 512  # as in `t5fusion generate`; a worker that dies loses the texts of at most this many rows


class Worker:
    """A process that loads the model once, and generates the texts of one batch of rows after another."""

    def __init__(self, **arguments):
        self.generate = TextGenerator(**arguments)

    def __call__(self, batch: pa.Table) -> pa.Table:
        if "output" in batch.column_names:
            raise ValueError('the rows have a column "output" already; rename it.')
        return batch.append_column("output", pa.array(self.generate(Dataset(batch)), pa.string()))


def read_arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="run folder, bundle or id on the Hub")
    parser.add_argument("output", help="new folder of Parquet files")
    parser.add_argument("files", nargs="+", help="Parquet files, or JSONL files")
    parser.add_argument("--text-column")
    parser.add_argument("--lexical-column", help="text that the encoder makes the vectors from")
    parser.add_argument("--vector-column", action="append", help="COLUMN, or KIND=COLUMN for each kind of vectors")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--cpus", type=int, default=1, help="CPUs of each worker")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs of each worker")
    parser.add_argument("--engine", default="torch", help="torch, fp32, bf16, int8 or auto")
    parser.add_argument("--beams", type=int, default=1)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--rows-per-file", type=int, default=100_000, help="rows of an output file, at least")
    return parser.parse_args()


def vector_columns(values: list[str] | None) -> str | dict[str, str] | None:
    """Return the only column of vectors, or the columns by kind; None if none is named."""
    if values and "=" in values[0]:
        return dict(value.split("=", 1) for value in values)
    return values[0] if values else None


def main() -> None:
    """Read, generate and write."""
    given = read_arguments()
    if "RAY_ADDRESS" not in os.environ:
        ray.init(num_cpus=given.workers * given.cpus + 1)  # Reading and writing take one.
    vector = vector_columns(given.vector_column)
    columns = columns_for(given.model, given.text_column, None, given.lexical_column, vector)
    read = ray.data.read_parquet if given.files[0].endswith(".parquet") else ray.data.read_json
    # Ray Data restarts workers that die, and repeats their tasks, without a limit. (max_restarts and max_task_retries
    # are -1 by default.)
    rows = read(given.files).repartition(target_num_rows_per_block=ROWS_PER_TASK, strict=True)
    texts = rows.map_batches(
        Worker,
        fn_constructor_kwargs={
            "name": given.model, "columns": columns, "engine": given.engine,
            "num_beams": given.beams, "max_new_tokens": given.max_new_tokens,
        },
        batch_size=ROWS_PER_TASK,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=given.workers),
        num_cpus=given.cpus,
        num_gpus=given.gpus,
        udf_modifying_row_count=False,
    )  # fmt: skip
    texts.write_parquet(given.output, min_rows_per_file=given.rows_per_file, mode=ray.data.SaveMode.ERROR)


if __name__ == "__main__":
    main()
