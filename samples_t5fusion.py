"""Samples of a model's weights as they were loaded, by which `check_reloadable` notices that a weight has changed."""

import os
from bisect import bisect_right
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

MAPPED_FILES = "/proc/self/maps"  # Linux lists here which files the process has mapped into memory, and where.


class LoadedWeights:
    """Samples of weights as they were loaded.

    A loaded weight is usually a view of its file, which is mapped into memory. A page of the file takes memory and time
    only when something reads it, and a sample reads every row, and so all pages. So on Linux, the sample of such a
    weight is taken only when it is needed, from a second mapping of the same file. Both mappings are private: a change
    of the model's weight reaches neither the file nor the second mapping.

    Args:
        weights: The names of the weights, and the weights. They must not have changed since they were loaded, except
            the weights of the fusion layer, which are sampled at once.
    """

    def __init__(self, weights: Iterable[tuple[str, Tensor]]):
        files = _MappedFiles()
        self._samples: dict[str, Tensor | None] = {}
        self._unread: dict[str, Tensor] = {}  # views of second mappings
        for name, value in weights:
            view = files.second_view(value) if can_be_sampled(value) and not _is_of_fusion(name) else None
            if view is None:
                self._samples[name] = sample(name, value)
            else:
                self._unread[name] = view

    def sample(self, name: str) -> Tensor | None:
        """Return the sample of a weight; None if there is no such weight, or it cannot be compared."""
        view = self._unread.get(name)
        if view is not None:
            self._samples[name] = sample(name, view)
            self._unread.pop(name, None)  # The last view of a file ends its mapping.
        return self._samples.get(name)

    def rows(self, name: str) -> int | None:
        """Return how many rows a weight had; None if it is not known."""
        if name in self._unread:
            return len(self._unread[name])
        loaded = self._samples.get(name)
        return None if loaded is None else int(loaded[-1])

    def __deepcopy__(self, memo: Any) -> "LoadedWeights":
        """Return this object, for the copy of a model, because what was loaded stays the same."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Return the samples alone, for `pickle`: another process has no mapping."""
        samples = {name: self.sample(name) for name in [*self._samples, *self._unread]}
        return {"_samples": samples, "_unread": {}}


class _Mapping(NamedTuple):
    """A part of a file that is mapped into memory."""

    start: int  # address of the first byte
    end: int  # address past the last byte
    offset: int  # of the first byte in the file
    file: str


class _MappedFiles:
    """The files that this process has mapped into memory, privately; none on a system other than Linux."""

    def __init__(self) -> None:
        self.mappings = _private_mappings()
        self.starts = [each.start for each in self.mappings]
        self.storages: dict[str, torch.UntypedStorage | None] = {}  # second mappings by file

    def second_view(self, value: Tensor) -> Tensor | None:
        """Return the numbers of a weight as they are in its file, without reading them; None if it lies in no file."""
        if value.device.type != "cpu" or not value.is_contiguous():
            return None
        start, size = value.data_ptr(), value.element_size()
        end = start + value.numel() * size
        position = bisect_right(self.starts, start) - 1
        if position < 0 or end > self.mappings[position].end:
            return None
        mapping = self.mappings[position]
        offset = mapping.offset + start - mapping.start
        if mapping.file not in self.storages:
            self.storages[mapping.file] = _map_again(mapping.file)
        storage = self.storages[mapping.file]
        if storage is None or offset % size or offset + value.numel() * size > storage.nbytes():
            return None
        # The device is explicit, because the process may have a different default.
        view = torch.empty(0, dtype=value.dtype, device="cpu")
        return view.set_(storage, offset // size, value.shape, value.stride())


def _private_mappings() -> list[_Mapping]:
    """Return this process' private mappings of files, to which it can write without changing the file, by address."""
    try:
        with open(MAPPED_FILES, encoding="utf-8", errors="surrogateescape") as file:
            lines = [line.rstrip("\n").split(maxsplit=5) for line in file]
    except OSError:
        return []
    mappings = []
    for addresses, rights, offset, _device, _inode, path in (line for line in lines if len(line) == 6):
        if rights.startswith("rw") and rights.endswith("p") and path.startswith("/"):
            start, _, end = addresses.partition("-")
            mappings.append(_Mapping(int(start, 16), int(end, 16), int(offset, 16), path))
    return mappings


def _map_again(file: str) -> torch.UntypedStorage | None:
    """Return the bytes of a file as a private mapping; None if that fails, for example because it was removed."""
    try:
        storage: Any = torch.UntypedStorage.from_file(file, False, os.path.getsize(file))
    except (OSError, RuntimeError):
        return None
    return storage


def can_be_sampled(value: Tensor) -> bool:
    """Return whether the numbers of a weight can be compared. A quantised or sharded weight cannot."""
    is_plain = type(value) in (nn.Parameter, Tensor)
    return not value.is_meta and value.is_floating_point() and is_plain and value.numel() > 0


def sample(name: str, value: Tensor) -> Tensor | None:
    """Return a sample of a weight's numbers, float32 (n,) on the CPU; None if they cannot be compared.

    The sample has one number of each row, or all numbers of a weight of the fusion layer. That is enough to notice a
    change: training and merging change nearly all numbers of a weight, and a change by hand usually replaces the whole
    rows of some tokens. The last number of the sample is the number of rows, by which `may_be_same` recognises a
    resized embedding table.
    """
    if not can_be_sampled(value):
        return None
    numbers = value.detach()
    if numbers.dim() == 2 and not _is_of_fusion(name):
        row = torch.arange(len(numbers), device=numbers.device)
        numbers = numbers[row, row % numbers.shape[1]]
    return torch.cat([numbers.reshape(-1).float().cpu(), torch.tensor([float(value.shape[0])], device="cpu")])


def may_be_same(loaded: Tensor | None, current: Tensor | None) -> bool:
    """Return whether two samples are equal, or cannot be compared. The samples of a resized table cannot be compared.

    Samples that a cast to half precision makes equal count as equal, because the model may have been cast.
    """
    if loaded is None or current is None or loaded.shape != current.shape or loaded[-1] != current[-1]:
        return True
    return torch.equal(loaded, current) or any(
        torch.equal(loaded.to(dtype), current.to(dtype)) for dtype in (torch.bfloat16, torch.float16)
    )


def _is_of_fusion(name: str) -> bool:
    """Return whether a weight of this name belongs to the fusion layer."""
    return ".fusion." in name
