"""The manifest of a bundle: its kind, and the digest of each of its files."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub.utils.sha import sha_fileobj

from ..common.saved_files import read_json
from .card import Kind
from .reference import REFERENCE

MANIFEST = "t5fusion.json"
FORMAT = 1  # of the manifest


def is_weights(name: str) -> bool:
    return name.endswith(".safetensors") and not name.endswith(REFERENCE)


def write_whole(file: Path, text: str) -> None:
    """Writes a file so that it is the old one or the new one at any moment."""
    new = file.with_name(f".{file.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(file)


def write_manifest(new: Path, kind: Kind) -> None:
    """What the bundle is, and the SHA-256 of each of its files and of this list."""
    files = {file.name: file_digest(file) for file in sorted(new.iterdir()) if file.name != MANIFEST}
    manifest = {"format": FORMAT, "kind": kind, "t5fusion": version("t5fusion"), "files": files}
    write_json(new / MANIFEST, manifest | {"digest": json_digest(manifest)})


def read_manifest(bundle: Path) -> dict[str, Any]:
    """The manifest of a bundle; ValueError where it is none, damaged, or of a later package."""
    file = bundle / MANIFEST
    if not file.exists():
        raise ValueError(f"{bundle} is no bundle: it holds no {MANIFEST}. Make one with `t5fusion export`.")
    try:
        manifest = read_json(file)
        found, digests = manifest.pop("digest"), [*manifest["files"].values()]
        later = manifest["format"] > FORMAT
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{file} is damaged: it is no manifest. Export the bundle again.") from error
    if found != json_digest(manifest) or not all(isinstance(digest, str) for digest in digests):
        raise ValueError(f"{file} is damaged: it is not what was written. Export the bundle again.")
    if later:
        raise ValueError(
            f"the bundle was written by t5fusion {manifest['t5fusion']}, later than this. Update t5fusion."
        )
    return manifest


def file_digest(file: Path) -> str:
    with file.open("rb") as opened:
        return sha_fileobj(opened).hex()


def json_digest(value: dict) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_json(file: Path, value: dict) -> None:
    file.write_text(as_json(value), encoding="utf-8")


def as_json(value: dict) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"
