"""What targets need that convert a module by a library of their own: quiet imports, errors, shapes."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from bnas.passes.generators import put_back, python_numbers
from bnas.runtime.latency.machine import machine

from .target import Feed, File, Network, TargetError


def here(target: str, **told: Any) -> dict[str, Any]:
    """This machine with a target that is not ONNX Runtime."""
    return {key: value for key, value in machine().items() if key != "onnxruntime"} | {"target": target, **told}


def installed(module: str, runtime: str, extra: str) -> Any:
    """A module of a runtime.

    Raises:
        TargetError: It cannot be imported.
    """
    try:
        with quiet():
            return import_module(module)
    except Exception as error:  # beside an unsuitable PyTorch a runtime raises anything
        raise TargetError(f"{runtime} cannot be imported ({told(error)}): pip install 'bnas[{extra}]'") from error


def module_of(network: Network, runtime: str) -> nn.Module:
    """The module of a network.

    Raises:
        TargetError: There is only an ONNX file.
    """
    if network.module is None:
        raise TargetError(f"{runtime} cannot convert {network.name!r}: it takes a module, and this is an ONNX file")
    return network.module


def check_shapes(file: File, shapes: Sequence[Sequence[int]], feed: Feed) -> None:
    """Raise `TargetError` where a file was made for inputs of other shapes."""
    made, given = [tuple(map(int, shape)) for shape in shapes], [array.shape for array in feed.values()]
    if made != given:
        raise TargetError(f"{named(file)} takes only inputs of the shapes {made} (those of the example), not {given}")


def named(file: File) -> str:
    """A file as errors call it."""
    return str(file) if isinstance(file, Path) else "the content of a file"


def told(error: Exception, said: str = "") -> str:
    """An error of a runtime in one line, with what the runtime printed."""
    text = " ".join(f"{type(error).__name__}: {error}".split())[:500]
    return f"{text} ({' '.join(said.split())[-500:]})" if said.strip() else text


@contextmanager
def quiet() -> Iterator[None]:
    """While it lasts, Python prints, logs and warns of nothing.

    Random numbers, the environment and the handlers of the root logger are afterwards as before: converters change all
    of them, some when they are imported.
    """
    handlers, disabled = list(logging.root.handlers), logging.root.manager.disable
    with ExitStack() as stack:
        stack.callback(put_back, python_numbers())
        stack.callback(setattr, logging.root, "handlers", handlers)
        stack.callback(logging.disable, disabled)
        for one in (redirect_stdout(StringIO()), redirect_stderr(StringIO()), warnings.catch_warnings()):
            stack.enter_context(one)
        stack.enter_context(mock.patch.dict(os.environ))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        yield
