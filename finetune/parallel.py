"""Share work among the processes that `accelerate launch` started."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from accelerate.utils.environment import parse_flag_from_env

Work = TypeVar("Work")
Result = TypeVar("Result")


def processes() -> PartialState:
    """Return accelerate's state of the processes that it or `torchrun` started, or of this process alone."""
    # Without `cpu=True`, accelerate treats two CPU processes as independent jobs.
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())


def shared(chunks: Iterable[Work], work: Callable[[Work], Result]) -> Iterator[tuple[Work, Result]]:
    """Yield each chunk with the result of `work(chunk)`, in order. Each of n processes works on every n-th chunk.

    Every process gets all results. All processes must call this function with the same chunks, and exhaust it.
    """
    state, chunks = processes(), iter(chunks)
    while group := list(islice(chunks, state.num_processes)):
        own = group[state.process_index : state.process_index + 1]
        yield from zip(group, gather_object([work(chunk) for chunk in own]), strict=True)
