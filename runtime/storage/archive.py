"""Archives: tensors in a safetensors file, everything else in a JSON manifest with format version and checksum."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from bnas.passes import SearchSpace
from bnas.runtime.errors import CheckpointError

from .files import checksum, discard, file_checksum, is_written_by, read_file, reading, there, write_bytes, write_json

# Fingerprints, which identify a super-network or model by its search space and the values of its tensors.


def fingerprint(tensors: Mapping[str, Tensor], space: SearchSpace) -> str:
    """Return the first 16 hexadecimal digits of a SHA-256 over the choices of `space` and the named `tensors`."""
    choices = [[v.name, v.kind, v.choices] for v in space.variables()]
    return digest_of(tensors, json.dumps([choices, space.chains, space.depth_limit]))[:16]


def digest_of(tensors: Mapping[str, Tensor], head: str = "") -> str:
    """Return the SHA-256, in hexadecimal, of `head` and of the names, shapes, types and bytes of `tensors`."""
    digest = hashlib.sha256(head.encode())
    for name, tensor in sorted(tensors.items()):
        data = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(data.shape)} {data.dtype}".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


SEAL = "seal"
"""Key of a manifest for the checksum of all other keys."""


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest with a checksum of its content."""
    return {**manifest, SEAL: _seal(manifest)}


def _seal(manifest: Mapping[str, Any]) -> str:
    return checksum(json.dumps(manifest, sort_keys=True, allow_nan=False).encode())


@dataclass(frozen=True)
class Archive:
    """A kind of archive: its file name, its name in errors, its format version, and the keys that it needs."""

    name: str
    what: str
    format: int
    keys: tuple[str, ...]
    prefix: str
    """Prefix of the name of the tensors file, before its checksum."""

    @property
    def manifest(self) -> str:
        """File name of the manifest."""
        return f"{self.name}.json"

    def write(self, directory: Path, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> None:
        """Write the tensors first and the manifest, which names their file, last, so that nothing is ever lost."""
        self._refuse_others(directory)
        data = tensor_bytes(tensors)
        name = f"{self.prefix}-{checksum(data)[:12]}.safetensors"
        write_bytes(directory / name, data)
        head = {"format": self.format, "weights": name, "sha256": checksum(data)}
        write_json(directory / self.manifest, sealed(head | dict(manifest)))
        self.remove_others(directory, name)

    def _refuse_others(self, directory: Path) -> None:
        """Raise if a file that is not a manifest has the name of the manifest."""
        path = directory / self.manifest
        if not is_written_by(path, lambda manifest: SEAL in manifest):
            raise CheckpointError(f"{path} exists, but bnas did not write it; move it to another place first")

    def remove_others(self, directory: Path, name: str) -> None:
        """Remove tensors files that no manifest names any more, except `name`.

        Only files whose name contains the checksum of their content are removed, since bnas wrote these.
        """
        with reading(directory):  # `Path.glob` passes over a folder that cannot be read
            names = os.listdir(directory)
        for other in names:
            if other != name and re.fullmatch(rf"{self.prefix}-[0-9a-f]{{12}}\.safetensors", other):
                old = directory / other
                if old.stem.endswith(file_checksum(old)[:12]):
                    discard(old)

    def exists(self, directory: Path) -> bool:
        """Whether there is an archive: a manifest, which is written last."""
        return there(directory / self.manifest)

    def read(self, directory: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the manifest and the tensors.

        Raises:
            CheckpointError: A file is missing, damaged, truncated, or of another format version.
        """
        manifest = self._manifest(directory)
        name = str(manifest["weights"])
        if not re.fullmatch(rf"{self.prefix}-[0-9a-f]{{12}}\.safetensors", name):
            raise _damaged(directory / self.manifest, f"{name!r} is not the name of a tensor file")
        path = directory / name
        if not there(path):
            raise CheckpointError(f"{path} is missing; {self.manifest} names it: {_again(path)}")
        data = read_file(path)
        if checksum(data) != manifest["sha256"]:
            raise _damaged(path, f"its checksum is not the one in {self.manifest}")
        return manifest, load(data)

    def _manifest(self, directory: Path) -> dict[str, Any]:
        path = directory / self.manifest
        if not there(path):
            raise CheckpointError(
                f"{directory} holds no {self.what}: {self.manifest} is missing; give the folder that has it"
            )
        try:
            manifest = json.loads(read_file(path))
        except ValueError as error:
            raise _damaged(path, str(error)) from error
        if not isinstance(manifest, dict) or manifest.get("format") != self.format:
            raise CheckpointError(
                f"{path} has an unknown format; this version of bnas reads format {self.format}: "
                "use the version that wrote it, or another folder"
            )
        for key in self._missing(manifest):
            raise _damaged(path, f"{key!r} is missing")
        if manifest.pop(SEAL) != _seal(manifest):
            raise CheckpointError(f"{path} is damaged or was changed: its checksum does not match; {_again(path)}")
        return manifest

    def _missing(self, manifest: Mapping[str, Any]) -> Iterable[str]:
        return (key for key in ("weights", "sha256", SEAL, *self.keys) if key not in manifest)


def _damaged(path: Path, told: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged: {told}; {_again(path)}")


def _again(path: Path) -> str:
    """Return the remedy for a file of an archive that cannot be used."""
    return f"restore it from a backup, or move {path.parent} away and repeat the step that writes it"


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the content of the tensors file; tensors that share memory are written one by one."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    uses = Counter(tensor.untyped_storage().data_ptr() for tensor in plain.values())
    shared = {name for name, tensor in plain.items() if uses[tensor.untyped_storage().data_ptr()] > 1}
    return save({name: tensor.clone() if name in shared else tensor for name, tensor in plain.items()})
