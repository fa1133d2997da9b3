"""Delivery of a run's networks: export them as modules and ONNX files, check them, and measure latency and accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from torch.fx import GraphModule

from bnas.passes import BnasError, Subnet
from bnas.run.files.mark import OutputError
from bnas.run.files.output import Output
from bnas.run.job import Job
from bnas.run.quantised import calibrated
from bnas.runtime import (
    Int8,
    Latency,
    LatencySettings,
    LayerTimes,
    Network,
    OnnxModule,
    SuperNetwork,
    export_onnx,
    fold,
    layer_times,
    measure_latency,
    origin,
)
from bnas.runtime.evaluate.evaluation import Batch, Loader
from bnas.runtime.example import one_sample
from bnas.runtime.feed import in_memory
from bnas.runtime.latency.measurement import target_for
from bnas.runtime.nested import tensors_in
from bnas.runtime.storage.archive import tensor_bytes
from bnas.runtime.storage.files import ReadError, WriteError, discard, write_bytes, write_json
from bnas.runtime.targets.onnxruntime import OnnxRuntime
from bnas.runtime.targets.target import takes_onnx

from .results import Quantised, Row


def write_int8(
    module: GraphModule,
    path: Path,
    example: Any,
    settings: Int8,
    metadata: Mapping[str, str],
) -> str | None:
    """Export `module` to an int8 file at `path`; return the reason if that is impossible, else None.

    Raises:
        WriteError: The file cannot be written.
        OutputError: A file exists at `path` that the run did not write, or that was changed since.
    """
    try:
        export_onnx(module, path, example, settings, metadata=metadata)
    except (WriteError, ReadError, OutputError):
        raise
    except BnasError as error:
        return str(error)
    return None


INT8 = ".int8"


@dataclass(frozen=True)
class Delivery:
    """Writes networks of one super-network to ``subnets/`` and measures them."""

    job: Job
    output: Output
    supernet: SuperNetwork
    calibration: list[Batch]
    """Training samples for the calibration of int8 files."""

    def rows(self, networks: Mapping[str, tuple[Subnet, GraphModule]]) -> tuple[Row, ...]:
        """Write and measure each network; the first one is the reference of all latencies.

        A module with two names is measured once. The modules are folded, so do not use them afterwards.
        """
        failures = {name: self._write(name, subnet, module) for name, (subnet, module) in networks.items()}
        names: dict[GraphModule, str] = {}
        for name, (_, module) in networks.items():
            names.setdefault(module, name)
        rows = self._measured({name: networks[name] for name in names.values()}, failures)
        return tuple(replace(rows[names[module]], name=name) for name, (_, module) in networks.items())

    def _measured(
        self, networks: Mapping[str, tuple[Subnet, GraphModule]], failures: Mapping[str, str | None]
    ) -> dict[str, Row]:
        """Measure different networks whose files are written; return their rows."""
        modules, test = {name: module for name, (_, module) in networks.items()}, in_memory(self.job.data.test)
        known = {name: failures[name] for name in networks}
        first, *others = self.job.clocks.items()
        latencies = self._latencies(first[1], modules, known)
        further = {name: self._further(settings, modules, known) for name, settings in others}
        profiles = self._profiles(first[1], modules)
        return {
            name: Row(
                name,
                self.job.quality.measure(fold(module), test),
                self.supernet.costs(subnet),
                latencies[name],
                subnet,
                self._quantised(name, failures[name], latencies, test),
                latencies={title: found[name] for title, found in further.items() if name in found},
                profile=profiles.get(name),
            )
            for name, (subnet, module) in networks.items()
        }

    def _write(self, name: str, subnet: Subnet, module: GraphModule) -> str | None:
        """Write the files of one network; return the reason if an int8 file was requested and cannot be made."""
        path, example = self.output.path, one_sample(self.supernet)
        write_json(path(f"subnets/{name}.json"), {**subnet.to_json(), "costs": self.supernet.costs(subnet)})
        write_bytes(path(f"subnets/{name}.safetensors"), tensor_bytes(module.state_dict()))
        metadata = origin(self.supernet, subnet)
        export_onnx(module, path(f"subnets/{name}.onnx"), example, metadata=metadata)
        quantised = path(f"subnets/{name}{INT8}.onnx")
        discard(quantised)  # the int8 file of an earlier export
        if self.job.int8 is None:
            return None
        return write_int8(module, quantised, example, calibrated(self.job.int8, self.calibration), metadata)

    def _latencies(
        self, settings: LatencySettings, modules: Mapping[str, GraphModule], failures: Mapping[str, str | None]
    ) -> dict[str, Latency]:
        """Measure the latencies of all float files, and of int8 files whose entry in `failures` is None."""
        example = one_sample(self.supernet, settings.sizes, settings.batch)
        networks = {name: self._network(name, module, example) for name, module in modules.items()}
        if self.job.int8 is not None and takes_onnx(settings.target):
            quantised = [f"{name}{INT8}" for name, failure in failures.items() if failure is None]
            networks |= {name: self._network(name, None, example) for name in quantised}
        return self._timed(networks, settings, example)

    def _profiles(self, settings: LatencySettings, modules: Mapping[str, GraphModule]) -> dict[str, LayerTimes]:
        """Measure the time of each layer of each network, if the target is ONNX Runtime."""
        if not isinstance(target_for(settings), OnnxRuntime):
            return {}
        example = one_sample(self.supernet, settings.sizes, settings.batch)
        networks = [self._network(name, None, example) for name in modules]
        return {one.name: layer_times(one, self._feeds(one, example), settings) for one in networks}

    def _further(
        self, settings: LatencySettings, modules: Mapping[str, GraphModule], failures: Mapping[str, str | None]
    ) -> dict[str, Latency]:
        """Measure a further latency of the networks; if its settings say int8, of the int8 files that exist."""
        if settings.int8 is None:
            return self._latencies(settings, modules, {})
        names = [name for name, failure in failures.items() if failure is None and self.job.int8 is not None]
        if not names:
            return {}
        example = one_sample(self.supernet, settings.sizes, settings.batch)
        networks = {name: self._network(f"{name}{INT8}", None, example) for name in names}
        return self._timed(networks, replace(settings, int8=None), example)

    def _timed(self, networks: Mapping[str, Network], settings: LatencySettings, example: Any) -> dict[str, Latency]:
        """Measure the latencies of files; the first one is the reference."""
        reference, first = next(iter(networks.items()))
        return measure_latency(networks, self._feeds(first, example), settings, reference=reference)

    def _network(self, name: str, module: GraphModule | None, example: Any) -> Network:
        """Return the file of a network for a target, together with its module if the file is not quantised."""
        path = self.output.path(f"subnets/{name}.onnx")
        graph = onnx.load(str(path), load_external_data=False)
        return Network(name, path, graph, module, tuple(one.cpu() for one in tensors_in(example)))

    def _feeds(self, network: Network, example: Any) -> dict[str, np.ndarray[Any, Any]]:
        inputs = [one.name for one in network.graph.graph.input]
        return dict(zip(inputs, (one.cpu().numpy() for one in tensors_in(example)), strict=True))

    def _quantised(
        self, name: str, failure: str | None, latencies: Mapping[str, Latency], test: Loader
    ) -> Quantised | None:
        if self.job.int8 is None or failure is not None:
            return None if failure is None else Quantised(failure=failure)
        file = self.output.path(f"subnets/{name}{INT8}.onnx")
        return Quantised(self.job.quality.measure(OnnxModule(file), test), latencies.get(f"{name}{INT8}"))
