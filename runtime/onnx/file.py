"""Write ONNX files atomically: first into a hidden folder in the same directory, then rename.

A protocol buffer holds at most 2 GiB. The weights of a larger model are in a second file, whose name contains the
checksum of its content. It is moved to its place first, so that an earlier model stays complete until it is replaced.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from onnx import external_data_helper

from bnas.passes.errors import BnasError
from bnas.runtime.storage.files import WriteError, checksum, discard, publish, read_file, temporary_suffix, why

from .weights import ExternalDataError, weight_files

if TYPE_CHECKING:
    from bnas.passes import Subnet
    from bnas.runtime.supernetwork import SuperNetwork


# The origin of an ONNX file, stored as properties in the file.

VERSION, CHOICE, COSTS, SUPERNET, FALLBACK, BATCH = (
    f"bnas.{name}" for name in ("version", "subnet", "costs", "supernet", "fallback", "batch")
)
"""Names of the properties in ``metadata_props``."""


def origin(supernet: SuperNetwork, subnet: Subnet) -> dict[str, str]:
    """Return the properties of an ONNX model of `subnet`: its choice and costs as JSON, version and hash.

    The hash is that of the super-network's weights: the ``sha256`` in the manifest that `SuperNetwork.save` writes.

    Raises:
        SubnetError: the sub-network is not of this space.
    """
    from bnas.runtime.storage.checkpoint import shared_bytes  # loads torch, which importing this module must not

    return {
        VERSION: version("bnas"),
        CHOICE: json.dumps(subnet.to_json(), sort_keys=True),
        COSTS: json.dumps(supernet.costs(subnet), sort_keys=True),
        SUPERNET: checksum(shared_bytes(supernet.model, supernet.kernel_matrices)),
    }


SIZE_LIMIT = 2**31 - 1
"""Bytes that one protocol buffer message, and so one model file, can hold."""

STRUCTURE = 2**20 * 16
"""Bytes reserved for everything except weights."""

SMALL = 1024
"""Smaller tensors (in bytes) stay in the model file, since the checker needs shapes and axes."""


class OnnxWriteError(WriteError):
    """An ONNX file could not be written; names the file."""


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Yield a temporary path to write a model to; at the end it is moved to `target`, after an error it is removed.

    Raises:
        OnnxWriteError: The file cannot be written, or `target` exists and is not an ONNX file.
    """
    folder: Path | None = None
    try:
        if target.is_dir():
            raise IsADirectoryError("it is a folder")
        if target.exists() and not replaceable(target):
            raise OnnxWriteError(f"{target} exists and is not an ONNX file; choose another name, or move it away first")
        if not target.parent.is_dir():
            raise NotADirectoryError(f"there is no folder {str(target.parent)!r}; create it first")
        # In the same folder, because a rename is atomic only within one file system.
        folder = Path(tempfile.mkdtemp(temporary_suffix(), f".{target.name}.", target.parent))
        yield folder / target.name
        _publish(folder, target)
    except OSError as error:
        if isinstance(error, WriteError) and not isinstance(error, OnnxWriteError):
            raise OnnxWriteError(str(error)) from error
        if isinstance(error, BnasError):
            raise
        raise OnnxWriteError(f"{target}: the ONNX file cannot be written: {why(error)}") from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def write_model(model: onnx.ModelProto, path: Path) -> None:
    """Write `model` to `path`. The weights of a very large model go to a second file, and are removed from `model`."""
    if weight_bytes(model) > SIZE_LIMIT - STRUCTURE:
        _move_weights(model, path)
    _write(path, model.SerializeToString())


def content(model: onnx.ModelProto, folder: Path) -> bytes | Path:
    """Return the serialised model for ONNX Runtime, or the path of a file in `folder` if the model is too large."""
    if weight_bytes(model) <= SIZE_LIMIT - STRUCTURE:
        whole: bytes = model.SerializeToString()
        return whole
    write_model(model, folder / "model.onnx")
    return folder / "model.onnx"


def weight_bytes(model: onnx.ModelProto) -> int:
    """Return the number of bytes of the weights inside `model`."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


def _move_weights(model: onnx.ModelProto, path: Path) -> None:
    digest = hashlib.sha256()
    for tensor in model.graph.initializer:
        digest.update(tensor.raw_data)
    name = f"{path.stem}-{digest.hexdigest()[:12]}.data"
    external_data_helper.convert_model_to_external_data(model, location=name, size_threshold=SMALL)
    external_data_helper.write_external_data_tensors(model, str(path.parent))


def model_bytes(path: Path) -> int:
    """Return the size in bytes of the model at `path`, with its files of weights.

    Raises:
        ExternalDataError: as `bnas.runtime.onnx.weights.weight_files`.
    """
    return sum(file.stat().st_size for file in (path, *weight_files(path)))


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)


def former_model(target: Path) -> onnx.ModelProto | None:
    """Read the model at `target` without external weights; None if it is not an ONNX file.

    Raises:
        ReadError: The file cannot be read.
    """
    data = read_file(target)
    try:
        model = onnx.load_model_from_string(data)
    except Exception:  # the library raises errors of protocol buffers, which has several implementations
        return None
    return model if model.ir_version and model.HasField("graph") else None


def replaceable(target: Path) -> bool:
    """Whether the file at `target` is an ONNX file, or an empty file with the suffix of one."""
    empty = target.stat().st_size == 0 and target.suffix == ".onnx"
    return empty or former_model(target) is not None


def made_by_bnas(target: Path) -> bool:
    """Whether the file at `target` is an ONNX file that bnas wrote."""
    model = former_model(target)
    return model is not None and any(one.key == VERSION for one in model.metadata_props)


def _former_weights(target: Path) -> list[str]:
    try:
        return [file.name for file in weight_files(target)] if target.exists() and target.stat().st_size else []
    except ExternalDataError:  # a weights file is missing, so there is nothing to remove
        return []


def _publish(folder: Path, target: Path) -> None:
    """Move the files in `folder` to their places, the model last; then remove the weights of the old model."""
    model = folder / target.name
    weights = [file.name for file in weight_files(model)]
    former = _former_weights(target)
    for name in (*weights, target.name):
        publish(folder / name, target.parent / name)
    own = re.compile(rf"{re.escape(target.stem)}-[0-9a-f]{{12}}\.data")
    for name in former:
        if name not in weights and own.fullmatch(name):
            discard(target.parent / name)
