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
    """Who takes part: the processes that `accelerate launch` or `torchrun` started, or this one alone."""
    # without a word from us, accelerate makes of two processes on CPUs two that are alone
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())


def shared(chunks: Iterable[Work], work: Callable[[Work], Result]) -> Iterator[tuple[Work, Result]]:
    """Chunks in their order, and what `work` makes of each; each process does every n-th, and all get all.

    All processes must call it, with the same chunks, and use it up.
    """
    state, chunks = processes(), iter(chunks)
    while turn := list(islice(chunks, state.num_processes)):
        mine = turn[state.process_index : state.process_index + 1]
        yield from zip(turn, gather_object([work(chunk) for chunk in mine]), strict=True)
