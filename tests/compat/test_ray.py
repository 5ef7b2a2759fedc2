"""The example for Ray survives the death of a worker. `make compat` checks it with more kinds of rows."""

import pytest

pytest.importorskip("ray")


def test_a_killed_worker_costs_no_row():
    from compat import ray_data

    assert "a worker was killed" in ray_data.generates("T5WithFusion", ray_data.GIVEN, ".parquet", kill=True)
