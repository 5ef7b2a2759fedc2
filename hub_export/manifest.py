"""The manifest of a bundle: its kind, and the digest of each of its files."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub.utils.sha import sha_fileobj

from ..common.run_files import MANIFEST, REFERENCE, read_json
from .kinds import Kind, parse_kind

FORMAT = 1  # version of the manifest's format


def is_weights(name: str) -> bool:
    """Return whether a file of a bundle holds weights of the model."""
    return name.endswith(".safetensors") and not name.endswith(REFERENCE)


def write_manifest(bundle: Path, kind: Kind) -> None:
    """Write the kind of a bundle, the SHA-256 of each of its files, and the SHA-256 of this list."""
    files = {file.name: file_digest(file) for file in sorted(bundle.iterdir()) if file.name != MANIFEST}
    manifest = {"format": FORMAT, "kind": kind, "t5fusion": version("t5fusion"), "files": files}
    write_json(bundle / MANIFEST, manifest | {"digest": json_digest(manifest)})


def read_manifest(bundle: Path) -> dict[str, Any]:
    """Return the manifest of a bundle without its own digest. The kind "base" of earlier manifests reads as "fused".

    Raises:
        ValueError: The folder holds no manifest, a damaged one, or a manifest of a later t5fusion.
    """
    file = bundle / MANIFEST
    if not file.exists():
        raise ValueError(f"{bundle} is not a bundle: it holds no {MANIFEST}. Make one with `t5fusion export`.")
    try:
        manifest = read_json(file)
        digest, digests = manifest.pop("digest"), [*manifest["files"].values()]
        is_later = manifest["format"] > FORMAT
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{file} is damaged: it is not a manifest. Export the bundle again.") from error
    if digest != json_digest(manifest) or not all(isinstance(each, str) for each in digests):
        raise ValueError(f"{file} is damaged: it is not as it was written. Export the bundle again.")
    if is_later:
        raise ValueError(
            f"the bundle was written by a later release, t5fusion {manifest['t5fusion']}. Update t5fusion."
        )
    return manifest | {"kind": parse_kind(manifest["kind"])}


def bundle_files(bundle: Path) -> set[str]:
    """Return the names of the files that an export wrote into a bundle: only the manifest if it is damaged."""
    try:
        return {*read_manifest(bundle)["files"], MANIFEST}
    except ValueError:
        return {MANIFEST}


def file_digest(file: Path) -> str:
    """Return the SHA-256 of a file."""
    with file.open("rb") as opened:
        return sha_fileobj(opened).hex()


def json_digest(value: dict) -> str:
    """Return the SHA-256 of a JSON object, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_json(file: Path, value: dict) -> None:
    """Write a JSON object with sorted keys, so that equal objects give equal bytes."""
    file.write_text(as_json(value), encoding="utf-8")


def as_json(value: dict) -> str:
    """Return a JSON object as the text of a file."""
    return json.dumps(value, indent=2, sort_keys=True) + "\n"
