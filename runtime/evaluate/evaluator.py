"""`Evaluator`: extract a sub-network, recalibrate its BatchNorm, fold BatchNorm into convolutions, measure accuracy.

An evaluation works on an extracted copy, so the shared parameters and statistics never change.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from torch.fx import GraphModule

from bnas.passes import Subnet
from bnas.runtime.feed import again, drawn, in_memory, is_stream
from bnas.runtime.nested import as_batch, device_of, inputs_of, laid_out, placed
from bnas.runtime.supernetwork import SuperNetwork

from .evaluation import Batch, Metric, accuracy, fold, fused_layer, measured, recalibrate
from .overwriting import overwrite
from .together import Bar, Folds, Layers, Raced, RacingError, accuracies, race, replays, share_layers, shuffled

# Keep freed memory in the process, ready for the next tensor.

LARGE = 31 << 20
"""Bytes; glibc's largest threshold is 32 MiB."""


def keep_freed_memory() -> None:
    """Make glibc keep freed blocks of up to 31 MiB, and 62 MiB of free memory at the end of its heap.

    By default glibc returns large blocks to the operating system at once. The kernel must then provide and clear every
    page of the next block, which may take longer than the operation that fills it. glibc raises its threshold to the
    largest mapped block that was freed so far (malloc(3), M_MMAP_THRESHOLD). This function therefore frees several
    blocks, without writing to them: a single one might be placed in the heap and change nothing. With other C libraries
    it does nothing.
    """
    blocks = [torch.empty(LARGE, dtype=torch.uint8) for _ in range(4)]
    blocks.clear()


M = TypeVar("M", bound=nn.Module)


class ChannelsLast:
    """Batches as pairs of inputs and targets, with images in the memory layout (channels last) of evaluation."""

    def __init__(self, batches: Iterable[Batch], takes: Collection[str] = (), source: str = "the data") -> None:
        self.batches, self.takes, self.source = again(batches), takes, source
        self.dataset = getattr(self.batches, "dataset", None)

    def __iter__(self) -> Iterator[Batch]:
        pairs = (as_batch(batch, self.takes) for batch in drawn(self.batches, self.source))
        return ((laid_out(inputs, "channels_last"), targets) for inputs, targets in pairs)

    def __len__(self) -> int:
        return len(self.batches)  # raises TypeError, as `len` does, if the loader has no length


class Evaluator:
    """Measure sub-networks of one super-network, all on the same data.

    Args:
        supernet: the super-network.
        calibration: batches for the BatchNorm statistics, with the training transform. If None, sub-networks keep the
            shared statistics, which fit only the maximal sub-network at best.
        validation: batches to measure the metric on; `evaluate_many` keeps them in memory. A stream (an
            `IterableDataset`, or a loader without a length) is read again for each group instead, or for each
            sub-network where the metric is not accuracy, so it must return the same samples each time. The same holds
            if `calibration` is a stream.
        metric: a function of a module and the batches of `validation` (as pairs); by default top-1 accuracy.
        group: number of sub-networks that `evaluate_many` evaluates together, with all their tensors in memory.
        metric_name: the name of the metric's value.
        autocast: a number type such as `torch.bfloat16` for the measurement: faster on machines that support it, but
            less exact, so use it for ranking. Statistics are recalibrated in the type of the model.
    """

    def __init__(
        self,
        supernet: SuperNetwork,
        calibration: Iterable[Batch] | None,
        validation: Iterable[Batch],
        metric: Metric = accuracy,
        *,
        group: int = 50,
        metric_name: str = "accuracy",
        autocast: torch.dtype | None = None,
    ) -> None:
        keep_freed_memory()
        self.autocast = autocast
        self.supernet, self.metric, self.group, self.metric_name = supernet, metric, group, metric_name
        takes = inputs_of(supernet)
        self.calibration: Iterable[Batch] | None = None
        if calibration is not None:
            self.calibration = in_memory(ChannelsLast(calibration, takes, "the calibration data"))
        self.validation = ChannelsLast(validation, takes, "the validation data")
        self._kept: list[Batch] | None = None
        self._shuffled: list[Batch] | None = None

    def on(self, supernet: SuperNetwork) -> Evaluator:
        """Return an evaluator of another super-network of the same model, on the same data."""
        other = copy.copy(self)
        other.supernet = supernet
        return other

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the values that an evaluation returns."""
        return self.metric_name, *self.supernet.cost_model.expressions

    def prepare(self, subnet: Subnet) -> GraphModule:
        """Return the extracted `subnet` with recalibrated statistics, in evaluation mode, ready to deploy."""
        return self.recalibrated(self.supernet.extract(subnet))

    def recalibrated(self, module: GraphModule) -> GraphModule:
        """Recalibrate the statistics of `module`, an extracted sub-network with any weights, in place; return it."""
        return self._recalibrated(module.eval()).to(memory_format=torch.contiguous_format)

    def evaluate(self, subnet: Subnet) -> dict[str, float]:
        """Return ``accuracy`` (or the metric) and the costs of `subnet`, by name."""
        return self._values(subnet, self._alone(subnet).quality)

    def evaluate_many(
        self, subnets: Sequence[Subnet], bars: Mapping[Subnet, Bar] | None = None
    ) -> list[dict[str, float] | Exception]:
        """Return for each sub-network what `evaluate` returns, bitwise, or the error that it raises.

        Layers that sub-networks have in common at the beginning of the network are computed once. Mutations of
        each other have many such layers.

        Args:
            subnets: the sub-networks.
            bars: a bar for each sub-network (racing). Validation samples are then drawn at random, and the measurement
                of a sub-network stops as soon as its bar is out of reach; see `bnas.runtime.evaluate.together`. The
                value "part" is the share of the samples that was used.
        """
        if bars is not None and is_stream(self.validation):
            raise RacingError(
                "racing draws random samples from all data, which a stream does not allow: search without racing"
            )
        if bars is not None and self._shuffled is None:
            self._shuffled = shuffled(self._batches())
        groups = (subnets[start : start + self.group] for start in range(0, len(subnets), self.group))
        return [values for group in groups for values in self._evaluate_group(group, bars)]

    def measure(self, module: GraphModule) -> float:
        """Return the metric of a module made by `prepare`. This folds the module, so do not train it afterwards."""
        return self._quality(_quick(overwrite(fold(module))), self.validation)

    @property
    def precision(self) -> str:
        """Suffix of the super-network's fingerprint in logs of evaluations under `autocast`, which are inexact."""
        return "" if self.autocast is None else f"-{self.autocast}".replace("torch.", "")

    def _recalibrated(self, module: GraphModule) -> GraphModule:
        module = _quick(module)
        if self.calibration is not None:
            recalibrate(module, self.calibration)
        return module

    def _casting(self) -> torch.autocast:
        device = device_of(self.supernet)
        return torch.autocast(device.type, self.autocast or torch.bfloat16, enabled=self.autocast is not None)

    def _quality(self, module: nn.Module, batches: Iterable[Batch]) -> float:
        with self._casting():
            return measured(self.metric, module, batches)

    def _values(self, subnet: Subnet, quality: float) -> dict[str, float]:
        return {self.metric_name: quality, **self.supernet.costs(subnet)}

    def _alone(self, subnet: Subnet) -> Raced:
        module = self._recalibrated(overwrite(self.supernet.extract(subnet)))
        return self._raced(_quick(fold(module)))

    def _evaluate_group(
        self, subnets: Sequence[Subnet], bars: Mapping[Subnet, Bar] | None
    ) -> list[dict[str, float] | Exception]:
        found: Sequence[Raced | Exception]
        try:
            found = self._together(subnets) if bars is None else self._race(subnets, bars)
        except Exception:  # one sub-network failed, or memory is too small for a group: try each alone
            found = [_tried(self._alone, subnet) for subnet in subnets]
        return [
            one
            if isinstance(one, Exception)
            else self._values(subnet, one.quality) | ({} if bars is None else {"part": one.part})
            for subnet, one in zip(subnets, found, strict=True)
        ]

    def _together(self, subnets: Sequence[Subnet]) -> list[Raced | Exception]:
        """Measure each sub-network completely; outputs on the validation data are computed for all of them together.

        Outputs on a stream cannot be kept. Accuracies are then counted in one pass; for another metric each sub-network
        is measured separately.
        """
        modules = self._prepared_together(subnets)
        if is_stream(self.validation) and self.metric is accuracy:
            with self._casting():
                return [Raced(one, 1.0) for one in accuracies(modules, self._placed())]
        if is_stream(self.validation):
            return [_tried(self._raced, one) for one in modules]
        batches = self._batches()
        with self._casting():
            known = replays(modules, batches)
        return [_tried(lambda module: Raced(self._quality(module, batches), 1.0), one) for one in known]

    def _raced(self, module: nn.Module) -> Raced:
        return Raced(self._quality(module, self.validation), 1.0)

    def _race(self, subnets: Sequence[Subnet], bars: Mapping[Subnet, Bar]) -> list[Raced | Exception]:
        assert self._shuffled is not None
        places = {place: bars[subnet] for place, subnet in enumerate(subnets) if subnet in bars}
        modules = self._prepared_together(subnets)
        with self._casting():
            return race(modules, self._shuffled, self.metric, places)

    def _prepared_together(self, subnets: Sequence[Subnet]) -> list[GraphModule]:
        """Return the prepared and folded sub-networks; they share the layers that compute the same."""
        layers, folds = Layers(), Folds(fused_layer)
        modules = [overwrite(self.supernet.skeleton.build(subnet, layers).eval()) for subnet in subnets]
        trie = share_layers(modules, layers)
        whole = _quick(nn.ModuleList(modules))
        if self.calibration is not None:
            recalibrate(whole, self.calibration, trie)
        for module in modules:
            _quick(fold(module, folds))
        return modules

    def _batches(self) -> list[Batch]:
        """Return the validation batches. `Replay` finds known outputs by the identity of these tensors."""
        if self._kept is None:
            self._kept = list(self._placed())
        return self._kept

    def _placed(self) -> Iterator[Batch]:
        device = device_of(self.supernet)
        return ((placed(inputs, device), targets) for inputs, targets in self.validation)


def _quick(module: M) -> M:
    """Convert `module` to the memory layout of evaluation."""
    return module.to(memory_format=torch.channels_last)


def _tried(function: Callable[[Any], Raced], argument: Any) -> Raced | Exception:
    try:
        return function(argument)
    except Exception as error:
        return error
