"""Helpers of targets that convert modules with a library of their own: quiet imports, errors, checks of shapes."""

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
    """Describe this machine together with a target other than ONNX Runtime."""
    return {key: value for key, value in machine().items() if key != "onnxruntime"} | {"target": target, **told}


def installed(module: str, runtime: str, extra: str) -> Any:
    """Import a module of a runtime.

    Raises:
        TargetError: The module cannot be imported.
    """
    try:
        with quiet():
            return import_module(module)
    except Exception as error:  # with an unsuitable version of PyTorch, a runtime may raise any error
        raise TargetError(f"{runtime} cannot be imported ({told(error)}): pip install 'bnas[{extra}]'") from error


def module_of(network: Network, runtime: str) -> nn.Module:
    """Return the module of a network.

    Raises:
        TargetError: The network has only an ONNX file.
    """
    if network.module is None:
        raise TargetError(f"{runtime} cannot convert {network.name!r}: it takes a module, and this is an ONNX file")
    return network.module


def check_shapes(file: File, shapes: Sequence[Sequence[int]], feed: Feed) -> None:
    """Raise `TargetError` if a file was made for inputs of other shapes."""
    made, given = [tuple(map(int, shape)) for shape in shapes], [array.shape for array in feed.values()]
    if made != given:
        raise TargetError(f"{named(file)} takes only inputs of the shapes {made} (those of the example), not {given}")


def named(file: File) -> str:
    """Return the name of a file in error messages."""
    return str(file) if isinstance(file, Path) else "the content of a file"


def told(error: Exception, said: str = "") -> str:
    """Return an error of a runtime in one line, with the output of the runtime."""
    text = " ".join(f"{type(error).__name__}: {error}".split())[:500]
    return f"{text} ({' '.join(said.split())[-500:]})" if said.strip() else text


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, Python prints, logs and warns nothing.

    Afterwards random states, the environment and the handlers of the root logger are restored, because converters
    change all of them, some already at import.
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
