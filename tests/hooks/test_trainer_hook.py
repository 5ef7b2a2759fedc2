"""What the Trainer's hook measures at the end of a training."""

import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from t5fusion import DataCollatorWithFusion, T5WithFusion
from t5fusion.hooks.trainer_hook import measure_vectors


@pytest.mark.parametrize(("size", "expected"), [(64, list(range(10))), (4, [0, 1, 2, 3, 8, 9])])
def test_rows_that_fill_up_a_batch_of_several_processes_are_not_counted(plain_folders, tokenizer, size, expected):
    """accelerate fills up each process' last batch with rows from the beginning."""
    model = T5WithFusion(plain_folders["flan"])
    vectors = torch.randn(10, 384, generator=torch.Generator().manual_seed(0))
    rows = [
        {"input_ids": [5, 1], "labels": [3 + row, 1], "lexical_embeds": vector} for row, vector in enumerate(vectors)
    ]
    loader = DataLoader(rows, batch_size=size, collate_fn=DataCollatorWithFusion(tokenizer))
    alone, _ = measure_vectors(model, loader)
    own, other = measure_vectors(model, prepare_data_loader(loader, num_processes=2, process_index=0))
    assert own.sums == pytest.approx(alone.sums[expected])
    assert len(other.sums) == len(expected)
