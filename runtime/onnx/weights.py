"""External weight files of ONNX models: only files in the folder of the model are ever opened.

A model of more than 2 GiB names the files of its weights. A malicious model may name ``/etc/passwd``, or a pipe that
never ends. All names are therefore checked before any file except the model is read.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from google.protobuf.message import DecodeError, Message
from onnx import ModelProto, NodeProto, TensorProto

from bnas.passes.errors import BnasError
from bnas.runtime.storage.files import ReadError

NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
"""Errors that mean that a path does not lead to a file; other errors are failures of the system."""


class ExternalDataError(BnasError, ValueError):
    """An ONNX model is not a file, or names weights outside its folder; none of these were read."""


def weight_files(path: Path) -> list[Path]:
    """Return the weight files that the model at `path` names; all of them are in its folder.

    Raises:
        ExternalDataError: The model is not a file or not an ONNX model, or a weight file is missing, is outside the
            folder (also by a link), or is not a plain file.
        ReadError: The model cannot be read.
    """
    return [_checked(place, tensor, path) for place, tensor in _places(_read(path), str(path))]


def check_content(content: bytes) -> None:
    """Raise `ExternalDataError` if a serialised model names files, because its folder is unknown."""
    for place, tensor in _places(_parsed(content, "the model"), "the model"):
        raise ExternalDataError(f"{tensor}: names the file {place!r}; a model in memory must contain its weights")


def _read(path: Path) -> ModelProto:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise ExternalDataError(f"{path} is not a regular file")
        return _parsed(path.read_bytes(), str(path))
    except (OSError, ValueError) as error:
        if isinstance(error, BnasError):
            raise
        if isinstance(error, OSError) and error.errno not in NOWHERE:
            raise ReadError(f"{path} cannot be read: {error.strerror or error}") from error
        raise ExternalDataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _parsed(content: bytes, place: str) -> ModelProto:
    model = ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise ExternalDataError(f"{place} is not an ONNX model: {error}") from error
    return model


def _places(model: ModelProto, place: str) -> list[tuple[str, str]]:
    """Return each file name that tensors of a model give as their content, with the name of the first such tensor."""
    found: dict[str, str] = {}
    for message in _messages(model):
        if isinstance(message, NodeProto) and message.op_type == "EPContext":
            raise ExternalDataError(f"{place}: node {message.name!r} is compiled code of an execution provider")
        if isinstance(message, TensorProto):
            given = [entry.value for entry in message.external_data if entry.key == "location"]
            if not given and message.data_location == TensorProto.EXTERNAL:
                raise ExternalDataError(f"{place}: tensor {message.name!r} does not name the file that holds it")
            for one in given:
                found.setdefault(one, f"{place}: tensor {message.name!r}")
    return list(found.items())


def _messages(model: ModelProto) -> Iterator[Message]:
    """Yield all nodes and tensors of a model, including subgraphs, attributes, sparse tensors and functions."""
    stack: list[Message] = [model]
    while stack:
        message = stack.pop()
        yield message
        if isinstance(message, TensorProto):
            continue  # its content may be gigabytes
        for field, value in message.ListFields():
            if field.message_type is not None:
                stack += [value] if isinstance(value, Message) else value


def _checked(place: str, tensor: str, model: Path) -> Path:
    """Check and return the file `place` in the folder of `model`."""
    path, told = model.parent / place, f"{tensor} has its weights in the file {place!r}"
    if not _is_below(place):
        raise ExternalDataError(f"{told}, which is outside the model's folder {model.parent}")
    try:
        if not path.resolve().is_relative_to(model.parent.resolve()):
            raise ExternalDataError(f"{told}, which is a link to a place outside the model's folder {model.parent}")
        plain = stat.S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError:
        raise ExternalDataError(f"{told}, which is missing") from None
    except (OSError, RuntimeError) as error:
        raise ExternalDataError(f"{told}, which cannot be read: {error}") from error
    if not plain:
        raise ExternalDataError(f"{told}, which is not a regular file")
    return path


def _is_below(place: str) -> bool:
    """Whether a text is, on every system, a relative path that stays inside the folder.

    ONNX Runtime takes a place such as ``*/_ORT_MEM_ADDR_/*`` for an address in memory.
    """
    windows, posix = PureWindowsPath(place), PurePosixPath(place)
    upwards = ".." in (*windows.parts, *posix.parts)
    return bool(posix.parts) and not (upwards or windows.anchor or posix.is_absolute() or {"\0", "*"} & set(place))
