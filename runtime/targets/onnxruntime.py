"""ONNX Runtime as a target, which is the default."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from bnas.passes.settings import Count, settings
from bnas.runtime.latency.machine import machine
from bnas.runtime.latency.settings import CPU
from bnas.runtime.onnx.session import SessionError, open_session

from .target import Array, Feed, File, InProcess, Network, TargetError


@settings(TargetError, kw_only=True)
class OnnxRuntime(InProcess):
    """ONNX Runtime in this process, with all graph optimisations and threads that do not spin while they wait."""

    kind: Literal["onnxruntime"] = "onnxruntime"
    """Name of the target."""
    provider: str = CPU
    """Execution provider, among those that are installed."""
    inter_threads: Count = 1
    """Operators that may run at the same time."""

    @property
    def clock(self) -> Literal["cpu", "wall"]:  # type: ignore[override]
        """Return "cpu" on the CPU, and "wall" on other devices."""
        return "cpu" if self.provider == CPU else "wall"

    def build(self, network: Network, folder: Path) -> File:
        """Return the path of the ONNX model."""
        return network.onnx

    def load(self, file: File, feed: Feed, threads: int) -> Any:
        """Return a session of ONNX Runtime for the file."""
        try:
            return open_session(file, threads=threads, inter_threads=self.inter_threads, provider=self.provider)
        except SessionError as error:
            raise TargetError(str(error)) from error

    def run(self, loaded: Any, feed: Feed) -> Sequence[Array]:
        """The outputs."""
        try:
            found: Sequence[Array] = loaded.run(None, feed)
        except Exception as error:
            raise TargetError(f"ONNX Runtime cannot run it: {type(error).__name__}: {error}") from error
        return found

    def describe(self) -> dict[str, Any]:
        """The machine, and the provider."""
        return {**machine(), "target": "ONNX Runtime", "provider": self.provider}
