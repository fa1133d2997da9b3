"""The time of each layer of a network, from the profile of ONNX Runtime."""

from __future__ import annotations

import json
import re
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto

from bnas.runtime.onnx.session import SessionError, open_session
from bnas.runtime.supernetwork import SuperNetwork
from bnas.runtime.targets.onnxruntime import OnnxRuntime

from .candidates import Candidate, Inputs, feed_of, network_of
from .measurement import target_for
from .settings import LatencyError, LatencySettings

RUNS = 20
"""Largest number of profiled runs: the profile has whole microseconds, so more runs do not improve the median."""


@dataclass(frozen=True)
class LayerTimes:
    """The wall-clock milliseconds of each layer and operator in one run, as medians over the runs."""

    layers: Mapping[str, float]
    """Milliseconds by layer, in the order of execution. A layer is a module path in the node names of the ONNX file, if
    one of these nodes reads a weight with two or more axes. A fused activation is part of its layer."""
    other: Mapping[str, float]
    """Milliseconds by operator, for operators outside layers: pooling, sums, and those that ONNX Runtime inserts."""
    run_ms: float
    """Milliseconds of a whole profiled run. Profiling makes it slower than a normal run."""
    runs: int

    @property
    def total_ms(self) -> float:
        """The sum over all layers and other operators."""
        return sum(self.layers.values()) + sum(self.other.values())

    def to_json(self) -> dict[str, Any]:
        """All fields, by name, as JSON values."""
        return asdict(self)


def layer_times(
    candidate: Candidate,
    inputs: Inputs = None,
    settings: LatencySettings | None = None,
    *,
    supernet: SuperNetwork | None = None,
    **changes: Any,
) -> LayerTimes:
    """Measure the time of each layer of a network with the profiler of ONNX Runtime.

    Args:
        candidate: As for `bnas.measure_latency`.
        inputs: As for `bnas.measure_latency`.
        settings: Settings of the measurement; at most `RUNS` runs are made.
        supernet: The super-network of a candidate that is a `Subnet`.
        changes: Single settings by name.

    Raises:
        LatencyError: The target is not ONNX Runtime, or any error of `bnas.measure_latency`.
    """
    settings = LatencySettings.of(settings, changes)
    target = target_for(settings)
    if not isinstance(target, OnnxRuntime):
        told = "times by layer are the profile of ONNX Runtime; leave out the target, or the layers"
        raise LatencyError(f"target {type(target).__name__}: {told}")
    with TemporaryDirectory() as folder:
        network = network_of("the network", candidate, supernet, Path(folder), settings)
        feed = feed_of(network.name, network.graph, inputs, settings)
        try:
            events = _events(network.onnx, feed, settings, target, Path(folder))
        except SessionError as error:
            raise LatencyError(f"{network.name}: {error}") from error
    return _summed(events, Names(network.graph.graph), min(RUNS, settings.runs))


Event = Mapping[str, Any]


def _events(model: Any, feed: Any, settings: LatencySettings, target: OnnxRuntime, folder: Path) -> list[Event]:
    """Return the profiler events of each run and its operators, without the warm-up."""
    chosen = replace(settings, inter_threads=target.inter_threads, provider=target.provider)
    session = open_session(model, chosen, profile=folder / "profile")
    runs = min(RUNS, settings.runs)
    for _ in range(settings.warmup + runs):
        target.run(session, feed)
    found = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    begins = [one["ts"] for one in found if one.get("name") == "model_run"][-runs]
    return [one for one in found if one["ts"] >= begins]


def _summed(events: Sequence[Event], names: Names, runs: int) -> LayerTimes:
    """Take the median of each operator and sum the medians by layer."""
    whole = [one["dur"] for one in events if one["name"] == "model_run"]
    taken: dict[tuple[str, str], list[int]] = defaultdict(list)
    for one in events:
        if one["cat"] == "Node" and one["name"].endswith(KERNEL):
            taken[one["name"].removesuffix(KERNEL), one["args"]["op_name"]].append(one["dur"])
    layers: dict[str, float] = {}
    other: dict[str, float] = {}
    for (name, kind), times in taken.items():
        layer = names.layer_of(name, kind)
        place, key = (other, kind) if layer is None else (layers, layer)
        # An operator in a loop runs several times in one run: all its times count.
        place[key] = place.get(key, 0.0) + float(np.median(times)) * len(times) / runs / 1000
    return LayerTimes(layers, other, float(np.median(whole)) / 1000, runs)


# Mapping the operator names of ONNX Runtime to nodes of the file, and nodes to layers.

KERNEL = "_kernel_time"
"""Suffix of the events that are the execution of an operator."""
BLOCKED = re.compile(r"(.+)_nchwc(_token_\d+)?")
"""Suffix of operators on blocks of channels; the text before it is the output of the last fused operator."""
FUSED = "fused "
"""Prefix of operators that are fused with their activation."""


class Names:
    """Finds the nodes of an ONNX file by the operator names of ONNX Runtime, whose optimisations change names."""

    def __init__(self, graph: GraphProto) -> None:
        self.nodes: dict[str, NodeProto] = {node.name: node for node in graph.node if node.name}
        self.producers: dict[str, NodeProto] = {name: node for node in graph.node for name in node.output}
        weights = {one.name for one in graph.initializer if len(one.dims) > 1}
        self.layers = {_scope(node) for node in graph.node if weights.intersection(node.input)}

    def layer_of(self, name: str, kind: str) -> str | None:
        """Return the layer of an operator of this kind (such as "Conv"); None if it belongs to no layer."""
        node = self._node(name.removeprefix(FUSED), kind)
        return None if node is None or _scope(node) not in self.layers else _scope(node)

    def _node(self, name: str, kind: str) -> NodeProto | None:
        """Return the node from which ONNX Runtime made an operator."""
        parts = name.split("/")
        for count in range(len(parts), 0, -1):  # a fused operator is named like its first node, with a suffix
            if (found := self.nodes.get("/".join(parts[:count]))) is not None:
                return found
        match = BLOCKED.fullmatch(name)
        return None if match is None else next((one for one in self._before(match[1]) if one.op_type == kind), None)

    def _before(self, value: str) -> Iterator[NodeProto]:
        """Yield the node that computes a value and its predecessors, nearest first."""
        waiting, seen = deque([value]), set[str]()
        while waiting:
            node = self.producers.get(waiting.popleft())
            if node is not None and node.output[0] not in seen:
                seen.add(node.output[0])
                yield node
                waiting.extend(node.input)


def _scope(node: NodeProto) -> str:
    """The module path that a node is named after."""
    return node.name.rpartition("/")[0].removeprefix("/") or node.name
