"""Describe the machine and the versions that measurements were made with."""

import datetime
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("torch", "transformers", "peft", "sentence-transformers", "onnxruntime", "ctranslate2")
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def describe_machine() -> str:
    """Return the processor, its fast instructions, memory, GPU, versions and the date in one sentence."""
    fields = {}
    if Path("/proc/cpuinfo").exists():
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
        lines = (line.partition(":") for line in first.splitlines())
        fields = {name.strip(): value.strip() for name, _, value in lines}
    flags = fields.get("flags", "").split()
    features = ", ".join(name for name in FEATURES if name in flags) or "none of the fast instructions known here"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{name} {found}" for name in PACKAGES if (found := installed(name)))
    gpu = f"{torch.cuda.get_device_name()}; " if torch.cuda.is_available() else ""
    return (
        f"{os.cpu_count()} cores of {fields.get('model name', 'an unknown processor')} ({features}), {memory:.0f} GiB; "
        f"{gpu}{versions}; {datetime.date.today()}"
    )


def installed(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
