"""LiteRT, formerly TensorFlow Lite, as a target: `pip install 'bnas[litert]'`."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from bnas.passes.settings import settings
from bnas.runtime.onnx.trial import eval_mode

from .conversion import check_shapes, here, installed, module_of, named, quiet, told
from .target import Array, Feed, File, InProcess, Network, TargetError


@settings(TargetError, kw_only=True)
class LiteRT(InProcess):
    """LiteRT in this process, whose default on a CPU is XNNPACK.

    A file only accepts inputs with the shapes of the example, in the order of the module. 64-bit integers become 32-bit
    integers, also in inputs and outputs, as is usual on phones.
    """

    kind: Literal["litert"] = "litert"
    """Which target this is."""

    from_module: ClassVar[bool] = True

    def build(self, network: Network, folder: Path) -> File:
        """A file (.tflite) of the module."""
        converter, module = _converter(), module_of(network, "LiteRT")
        try:
            with quiet(), torch.no_grad(), eval_mode(module):
                converted = converter.convert(module, network.example)
        except Exception as error:
            raise TargetError(f"LiteRT cannot convert {network.name!r}: {told(error)}") from error
        path = folder / "model.tflite"
        with quiet():
            converted.export(str(path))
        return path

    def load(self, file: File, feed: Feed, threads: int) -> Any:
        """The interpreter with its inputs and outputs."""
        made = installed("ai_edge_litert.interpreter", "LiteRT", "litert").Interpreter
        source = {"model_content": file} if isinstance(file, bytes) else {"model_path": str(file)}
        with _stderr_aside() as said:
            try:
                interpreter = made(**source, num_threads=threads)
                interpreter.allocate_tensors()
            except Exception as error:
                raise TargetError(f"LiteRT cannot load {named(file)}: {told(error, said())}") from error
        inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
        check_shapes(file, [one["shape"] for one in inputs], feed)
        return interpreter, [(one["index"], one["dtype"]) for one in inputs], [one["index"] for one in outputs]

    def run(self, loaded: Any, feed: Feed) -> Sequence[Array]:
        """The outputs."""
        interpreter, inputs, outputs = loaded
        try:
            for (index, kind), array in zip(inputs, feed.values(), strict=True):
                interpreter.set_tensor(index, array.astype(kind, copy=False))
            interpreter.invoke()
            return [interpreter.get_tensor(index) for index in outputs]
        except Exception as error:
            raise TargetError(f"LiteRT cannot run it: {told(error)}") from error

    def describe(self) -> dict[str, Any]:
        """The machine, and LiteRT's version."""
        installed("ai_edge_litert", "LiteRT", "litert")
        return here("LiteRT", litert=version("ai-edge-litert"), backend="XNNPACK")


def _converter() -> Any:
    """Import the converter. Its C++ part reads the level of messages when it is loaded."""
    with quiet(), _stderr_aside():
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
        installed("litert_converter.mlir", "LiteRT", "litert")
    return installed("litert_torch", "LiteRT", "litert")


_STDERR = threading.Lock()
"""Held while the standard error of the process is redirected."""


@contextmanager
def _stderr_aside() -> Iterator[Any]:
    """Inside, the standard error of C++ code goes to a file; yield a function that returns its text."""
    with _STDERR, tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield lambda: file.seek(0) or file.read().decode(errors="replace")
        finally:
            os.dup2(kept, 2)
            os.close(kept)
