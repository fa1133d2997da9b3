"""ExecuTorch as a target: `pip install 'bnas[executorch]'`."""

from __future__ import annotations

import logging
import os
import random
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from bnas.passes.settings import settings
from bnas.runtime.latency.machine import machine
from bnas.runtime.onnx.trial import eval_mode

from .target import Array, Feed, File, InProcess, Network, TargetError


@settings(TargetError, kw_only=True)
class ExecuTorch(InProcess):
    """ExecuTorch in this process: XNNPACK computes what it has, and kernels of ExecuTorch compute the rest.

    A program takes inputs of the shapes of the example only, in the order of the module. Its threads are one pool for
    the whole process, so networks that are loaded at the same time have the same number of threads.
    """

    kind: Literal["executorch"] = "executorch"
    """Which target this is."""

    def build(self, network: Network, folder: Path) -> File:
        """A program (.pte) of the module."""
        partitioner = installed("executorch.backends.xnnpack.partition.xnnpack_partitioner", "ExecuTorch", "executorch")
        lower, module = import_module("executorch.exir").to_edge_transform_and_lower, module_of(network, "ExecuTorch")
        try:
            with quiet(), torch.no_grad(), eval_mode(module):
                exported = torch.export.export(module, network.example, strict=False)
                lowered = lower(exported, partitioner=[partitioner.XnnpackPartitioner()])
                content = lowered.to_executorch().buffer
        except Exception as error:
            raise TargetError(f"ExecuTorch cannot convert {network.name!r}: {told(error)}") from error
        path = folder / "model.pte"
        path.write_bytes(content)
        return path

    def load(self, file: File, feed: Feed, threads: int) -> Any:
        """The program's method."""
        runtime = installed("executorch.runtime", "ExecuTorch", "executorch").Runtime.get()
        with redirect_stderr(StringIO()) as said:  # C++ writes there too
            _set_threads(threads)
            try:
                program = runtime.load_program(file)
                loaded = _Loaded(program, program.load_method("forward"), threads)
            except Exception as error:
                raise TargetError(f"ExecuTorch cannot load {named(file)}: {told(error, said.getvalue())}") from error
        known = loaded.method.metadata
        check_shapes(file, [known.input_tensor_meta(one).sizes() for one in range(known.num_inputs())], feed)
        _LOADED.add(loaded)
        return loaded

    def run(self, loaded: Any, feed: Feed) -> Sequence[Array]:
        """The outputs."""
        try:
            return [np.asarray(one) for one in loaded.method.execute([_tensor(array) for array in feed.values()])]
        except Exception as error:
            raise TargetError(f"ExecuTorch cannot run it: {told(error)}") from error

    def describe(self) -> dict[str, Any]:
        """The machine, and ExecuTorch's version."""
        installed("executorch", "ExecuTorch", "executorch")
        return {**machine(), "target": "ExecuTorch", "version": version("executorch"), "backend": "XNNPACK"}


@dataclass(frozen=True, eq=False)
class _Loaded:
    program: Any
    """Has the memory of the method."""
    method: Any
    threads: int


_LOADED: weakref.WeakSet[_Loaded] = weakref.WeakSet()
"""What uses ExecuTorch's pool of threads: each keeps a pointer to it, so a new pool must wait until they are gone."""


def _set_threads(threads: int) -> None:
    library = import_module("executorch.extension.pybindings.portable_lib")
    if library._threadpool_get_thread_count() == threads:
        return
    if others := {one.threads for one in _LOADED}:
        raise TargetError(
            f"threads: ExecuTorch has one pool of threads for the whole process, and networks with {others.pop()} are "
            f"still loaded: {threads} is possible once they are gone"
        )
    library._unsafe_reset_threadpool(threads)


def _tensor(array: Array) -> Tensor:
    """The same memory where ExecuTorch and PyTorch accept it."""
    array = np.ascontiguousarray(array)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


# What all targets need that convert modules.


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
        raise TargetError(f"{named(file)} takes inputs of the shapes {made}, those of the example, and not {given}")


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
    state, numbers = random.getstate(), np.random.get_state()
    handlers, disabled = list(logging.root.handlers), logging.root.manager.disable
    with ExitStack() as stack:
        stack.callback(random.setstate, state)
        stack.callback(np.random.set_state, numbers)
        stack.callback(setattr, logging.root, "handlers", handlers)
        stack.callback(logging.disable, disabled)
        for one in (redirect_stdout(StringIO()), redirect_stderr(StringIO()), warnings.catch_warnings()):
            stack.enter_context(one)
        stack.enter_context(mock.patch.dict(os.environ))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        yield
