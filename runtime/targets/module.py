"""A file on a target, called as a module is: what metrics are measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bnas.runtime.onnx.session import Array, OnnxModule, SessionError, as_array

from .target import Network, Target, TargetError


class TargetModule(OnnxModule):
    """An ONNX file that runs on a target; it is loaded anew for inputs of other shapes.

    It returns what `bnas.runtime.OnnxModule` returns of the same file.
    """

    def __init__(self, network: Network, target: Target, folder: Path, threads: int = 1) -> None:
        """Build the file in an empty folder; it is loaded when it is first called."""
        nn.Module.__init__(self)
        self._place, self._network, self._target, self._threads = network.name, network, target, threads
        self._file = target.build(network, folder)
        self._loaded: dict[tuple[tuple[int, ...], ...], Any] = {}
        self.eval()

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names of the inputs, in order."""
        weights = {one.name for one in self._network.graph.graph.initializer}
        return tuple(one.name for one in self._network.graph.graph.input if one.name not in weights)

    def _run(self, tensors: list[Tensor]) -> Sequence[Array]:
        feed = {name: as_array(name, one) for name, one in zip(self.input_names, tensors, strict=False)}
        shapes = tuple(array.shape for array in feed.values())
        try:
            if shapes not in self._loaded:
                self._loaded = {shapes: self._target.load(self._file, feed, self._threads)}
            return self._target.run(self._loaded[shapes], feed)
        except TargetError as error:
            raise SessionError(str(error)) from error

    @property
    def _output_names(self) -> list[str]:
        return [one.name for one in self._network.graph.graph.output]

    @property
    def _properties(self) -> Mapping[str, str]:
        return {one.key: one.value for one in self._network.graph.metadata_props}
