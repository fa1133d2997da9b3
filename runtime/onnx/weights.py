"""Files of weights that an ONNX model names: only files that lie beside it are ever opened.

A model of more than 2 GiB keeps its weights in other files and says where. A model of somebody else may say
``/etc/passwd``, or name a pipe that never ends, so all that it says is checked before anything but itself is read.
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
"""Errors of a path that leads to no file; others are the system's."""


class ExternalDataError(BnasError, ValueError):
    """An ONNX model is no file, or names weights that do not lie in its folder; nothing of them was read."""


def weight_files(path: Path) -> list[Path]:
    """The files of weights that the model at `path` names, all of which lie in its folder.

    Raises:
        ExternalDataError: the model is no file or no ONNX model, or a file that it names is missing, lies elsewhere,
            is reached through a link out of the folder, or is no plain file.
        ReadError: the model cannot be read.
    """
    return [_checked(place, tensor, path) for place, tensor in _places(_read(path), str(path))]


def check_content(content: bytes) -> None:
    """Raise `ExternalDataError` where a serialised model names files: nobody knows the folder that it is of."""
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
    """What the tensors of a model name as the places of their content, each once, with the name of the first tensor."""
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
    """All nodes and tensors of a model, wherever they stand: in subgraphs, attributes, sparse tensors and functions."""
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
    """The file at `place` in the folder of `model`."""
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
    """Whether a text is a relative path, on every system, that does not lead upwards.

    ONNX Runtime takes a place such as ``*/_ORT_MEM_ADDR_/*`` for an address in memory.
    """
    windows, posix = PureWindowsPath(place), PurePosixPath(place)
    upwards = ".." in (*windows.parts, *posix.parts)
    return bool(posix.parts) and not (upwards or windows.anchor or posix.is_absolute() or {"\0", "*"} & set(place))
