"""OpenVINO as a target: `pip install 'bnas[openvino]'`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from bnas.passes.settings import settings

from .conversion import here, installed, told
from .target import Array, Feed, File, InProcess, Network, TargetError, written

NAMES = ("OpenVINO", "openvino")
"""Name of the runtime, and of the extra of bnas that installs it."""


@settings(TargetError, kw_only=True)
class OpenVINO(InProcess):
    """OpenVINO in this process, tuned for the latency of a single request, with static shapes.

    An int8 file (QDQ) of `bnas.export_onnx` runs in int8.
    """

    kind: Literal["openvino"] = "openvino"
    """Name of the target."""
    device: str = "CPU"
    """Among `openvino.Core().available_devices`."""
    precision: Literal["f32", "f16", "bf16"] = "f32"
    """Number type that OpenVINO may compute in; a device without support for it computes in f32."""

    @property
    def clock(self) -> Literal["cpu", "wall"]:  # type: ignore[override]
        """Return "cpu" on the CPU, and "wall" on other devices."""
        return "cpu" if self.device == "CPU" else "wall"

    def build(self, network: Network, folder: Path) -> File:
        """The ONNX model, which OpenVINO reads."""
        return written(network.onnx, folder)

    def load(self, file: File, feed: Feed, threads: int) -> Any:
        """A request of the compiled model."""
        core, hints = self._core(), {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": self.precision}
        limits = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1} if self.device == "CPU" else {}
        try:
            model = core.read_model(file if isinstance(file, bytes) else str(file))
            model.reshape({name: list(array.shape) for name, array in feed.items()})
            return core.compile_model(model, self.device, {**hints, **limits}).create_infer_request()
        except Exception as error:
            raise TargetError(f"OpenVINO cannot load it: {told(error)}") from error

    def run(self, loaded: Any, feed: Feed) -> Sequence[Array]:
        """The outputs."""
        try:
            found = loaded.infer(feed, share_inputs=True)
        except Exception as error:
            raise TargetError(f"OpenVINO cannot run it: {told(error)}") from error
        return list(found.values())

    def describe(self) -> dict[str, Any]:
        """The machine, OpenVINO's version, and its device."""
        device = str(self._core().get_property(self.device, "FULL_DEVICE_NAME"))
        return here(
            "OpenVINO", openvino=installed("openvino", *NAMES).__version__, precision=self.precision, device=device
        )

    def _core(self) -> Any:
        core = _shared()
        if self.device.partition(".")[0] not in {one.partition(".")[0] for one in core.available_devices}:
            raise TargetError(f"device: OpenVINO has no {self.device!r} here; available are {core.available_devices}")
        return core


@cache
def _shared() -> Any:
    """Return the OpenVINO core of this process, which is created once and never freed.

    Reason: a core sets a signal stack for the compiling thread and restores the previous one when it is freed. If two
    cores are freed in the order of their creation, the second one restores the freed stack of the first. The next
    signal, such as the end of a DataLoader worker, then causes a segmentation fault (OpenVINO 2026.4 on a CPU with
    AMX).
    """
    return installed("openvino", *NAMES).Core()
