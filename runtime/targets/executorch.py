"""ExecuTorch as a target: `pip install 'bnas[executorch]'`."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from bnas.passes.settings import settings
from bnas.runtime.onnx.trial import eval_mode

from .conversion import check_shapes, here, installed, module_of, named, quiet, told
from .target import Array, Feed, File, InProcess, Network, TargetError


@settings(TargetError, kw_only=True)
class ExecuTorch(InProcess):
    """ExecuTorch in this process. XNNPACK runs the operators that it supports, and ExecuTorch's own kernels the rest.

    A program only accepts inputs with the shapes of the example, in the order of the module. The whole process has one
    pool of threads, so networks that are loaded at the same time have the same number of threads.
    """

    kind: Literal["executorch"] = "executorch"
    """Which target this is."""

    from_module: ClassVar[bool] = True

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
        with redirect_stderr(StringIO()) as said:  # the C++ part also prints
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
        return here("ExecuTorch", executorch=version("executorch"), backend="XNNPACK")


@dataclass(frozen=True, eq=False)
class _Loaded:
    program: Any
    """Owns the memory of the method."""
    method: Any
    threads: int


_LOADED: weakref.WeakSet[_Loaded] = weakref.WeakSet()
"""Loaded programs. Each points to ExecuTorch's pool of threads, so a new pool must wait until all are freed."""


def _set_threads(threads: int) -> None:
    library = import_module("executorch.extension.pybindings.portable_lib")
    if library._threadpool_get_thread_count() == threads:
        return
    if others := {one.threads for one in _LOADED}:
        raise TargetError(
            f"threads: ExecuTorch has one thread pool for a process, and networks with {others.pop()} threads are "
            f"still loaded: release them before you ask for {threads}"
        )
    library._unsafe_reset_threadpool(threads)


def _tensor(array: Array) -> Tensor:
    """Return `array` as a tensor, without a copy if ExecuTorch and PyTorch accept its memory."""
    array = np.ascontiguousarray(array)
    return torch.from_numpy(array if array.flags.writeable else array.copy())
