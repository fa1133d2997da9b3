"""Where the time of a network goes: the profile of ONNX Runtime, summed by the layers of the model."""

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
"""Runs with a profile, at most: its clock has whole microseconds, so that the median of more says no more."""


@dataclass(frozen=True)
class LayerTimes:
    """What the operators of a network take in one run, in milliseconds on the wall clock: medians over the runs."""

    layers: Mapping[str, float]
    """By layer, in the order in which they run. A layer is the module path that the nodes of the ONNX file are named
    after, where one of them reads a weight of two or more axes; an activation that is fused with it counts as part."""
    other: Mapping[str, float]
    """What is of no layer, by operator: what ONNX Runtime puts in between, pooling, sums that stand alone."""
    run_ms: float
    """A whole run with the profile, which is slower than one without: each operator is also timed and noted."""
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
    """Measure where the time of a network goes, by the profile of ONNX Runtime.

    Args:
        candidate: As for `bnas.measure_latency`.
        inputs: As there.
        settings: How to run it; of `runs` at most `RUNS` are done.
        supernet: Where a candidate that is a `Subnet` comes from.
        changes: Single settings by name.

    Raises:
        LatencyError: The target is not ONNX Runtime, or as `bnas.measure_latency`.
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
    """What ONNX Runtime notes of each run and of each operator in it, without the runs of the warm-up."""
    chosen = replace(settings, inter_threads=target.inter_threads, provider=target.provider)
    session = open_session(model, chosen, profile=folder / "profile")
    runs = min(RUNS, settings.runs)
    for _ in range(settings.warmup + runs):
        target.run(session, feed)
    found = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    begins = [one["ts"] for one in found if one.get("name") == "model_run"][-runs]
    return [one for one in found if one["ts"] >= begins]


def _summed(events: Sequence[Event], names: Names, runs: int) -> LayerTimes:
    """Medians of each operator, summed by layer."""
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
        # One that is run several times in a run, in a loop, counts as often.
        place[key] = place.get(key, 0.0) + float(np.median(times)) * len(times) / runs / 1000
    return LayerTimes(layers, other, float(np.median(whole)) / 1000, runs)


# From the names that ONNX Runtime gives its operators to the nodes of the file, and to layers.

KERNEL = "_kernel_time"
"""Ends the name of an event that is the work of an operator."""
BLOCKED = re.compile(r"(.+)_nchwc(_token_\d+)?")
"""An operator on blocks of channels is called after the value that the last operator in it made."""
FUSED = "fused "
"""Begins the name of an operator that is fused with its activation."""


class Names:
    """The nodes of an ONNX file by the names that ONNX Runtime's optimisations make of theirs."""

    def __init__(self, graph: GraphProto) -> None:
        self.nodes: dict[str, NodeProto] = {node.name: node for node in graph.node if node.name}
        self.producers: dict[str, NodeProto] = {name: node for node in graph.node for name in node.output}
        weights = {one.name for one in graph.initializer if len(one.dims) > 1}
        self.layers = {_scope(node) for node in graph.node if weights.intersection(node.input)}

    def layer_of(self, name: str, kind: str) -> str | None:
        """The layer of an operator, which is of a kind; None where it is of none."""
        node = self._node(name.removeprefix(FUSED), kind)
        return None if node is None or _scope(node) not in self.layers else _scope(node)

    def _node(self, name: str, kind: str) -> NodeProto | None:
        """The node that an operator was made of."""
        parts = name.split("/")
        for count in range(len(parts), 0, -1):  # a fusion adds a word to the name of its first node
            if (found := self.nodes.get("/".join(parts[:count]))) is not None:
                return found
        match = BLOCKED.fullmatch(name)
        return None if match is None else next((one for one in self._before(match[1]) if one.op_type == kind), None)

    def _before(self, value: str) -> Iterator[NodeProto]:
        """The node that makes a value and those before it, the nearest first."""
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
