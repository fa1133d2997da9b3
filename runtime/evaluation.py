"""The accuracy of a sub-network: BatchNorm recalibrated on tensors of its own, conv and BN folded, then measured.

Nothing here touches the shared parameters or statistics: an evaluation works on an extracted copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from bnas.passes import BnasError, Subnet
from bnas.passes.ir import as_program_call

from .layout import device_of, laid_out, placed
from .nested import batch_size, described, map_tensors
from .racing import Bar, race, shuffled
from .supernetwork import SuperNetwork
from .together import Folds, Layers, replays, share_layers

Batch = tuple[Any, Any]
"""Inputs and targets, as a data loader gives them. Inputs are a tensor, or a tuple or dict of them."""


class Loader(Protocol):
    """Batches, again at every iteration, such as a `torch.utils.data.DataLoader` or a list of them."""

    def __iter__(self) -> Iterator[Batch]:
        """The batches."""

    def __len__(self) -> int:
        """The number of batches."""


Metric = Callable[[nn.Module, Iterable[Batch]], float]
"""The quality of a module in evaluation mode on batches."""


Fuse = Callable[[nn.Module, nn.Module], "nn.Module | None"]
"""Folds a normalisation into the layer before it, or refuses by None."""


class EvaluationError(BnasError):
    """A module cannot be evaluated: no data, or outputs that are not numbers."""


def recalibrate(module: nn.Module, batches: Iterable[Batch], forward: Callable[..., object] | None = None) -> None:
    """Set the BatchNorm statistics of `module`, in place, to the averages over `batches`, which `forward` runs on.

    All batches count the same (``momentum=None``), dropout is off, and modes and momenta are put back. Give at least
    500 images that went through the *training* transform: statistics of images without it cost several points.

    Raises:
        EvaluationError: there are BatchNorm layers with statistics, and no batches.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return
    modes = {m: m.training for m in module.modules()}
    momenta = {norm: norm.momentum for norm in norms}
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        seen = 0
        with torch.no_grad():
            for inputs, _ in batches:
                tensors, named = as_program_call(placed(inputs, device_of(module)))
                (forward or module)(*tensors, **named)
                seen += 1
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum
        for child, mode in modes.items():
            child.training = mode
    if not seen:
        raise EvaluationError("BatchNorm statistics cannot be recalibrated: there is not a single batch")


def fold(module: GraphModule, fuse: Fuse | None = None) -> GraphModule:
    """Fold each BatchNorm into the convolution or linear layer that only it reads, in place; returns `module`.

    In evaluation mode the outputs are the same to rounding. A layer that is called twice is left alone.
    """
    uses = [str(node.target) for node in module.graph.nodes if node.op == "call_module"]
    for node in list(module.graph.nodes):
        before = node.args[0] if node.args and isinstance(node.args[0], Node) else None
        if node.op != "call_module" or before is None or before.op != "call_module" or len(before.users) > 1:
            continue
        layer, norm = module.get_submodule(str(before.target)), module.get_submodule(str(node.target))
        fused = (fuse or fused_layer)(layer, norm)
        if fused is not None and uses.count(str(node.target)) == uses.count(str(before.target)) == 1:
            module.set_submodule(str(before.target), fused)
            node.replace_all_uses_with(before)
            module.graph.erase_node(node)
            module.delete_submodule(str(node.target))
    module.recompile()
    return module


def fused_layer(layer: nn.Module, norm: nn.Module) -> nn.Module | None:
    """A layer that computes what `norm` makes of the outputs of `layer`, or None where there is none."""
    if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) or not norm.track_running_stats:
        return None
    if type(layer) in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        return fuse_conv_bn_eval(layer, norm)  # type: ignore[type-var]
    return fuse_linear_bn_eval(layer, norm) if type(layer) is nn.Linear else None


def accuracy(module: nn.Module, batches: Iterable[Batch]) -> float:
    """Top-1 accuracy, 0 to 1, of a module whose output is (batch, classes); targets are class numbers.

    Raises:
        EvaluationError: there is no data, or an output is NaN or inf, or of another shape.
    """
    right = total = 0
    with torch.inference_mode():
        for inputs, targets in batches:
            outputs = module(placed(laid_out(inputs, "channels_last"), device_of(module)))
            _check_scores(outputs)
            if not bool(torch.isfinite(outputs).all()):
                raise EvaluationError(f"an output after {total} samples is NaN or inf")
            right += int((outputs.argmax(1) == placed(targets, outputs.device)).sum())
            total += len(targets)
    if not total:
        raise EvaluationError("there is no data to measure the accuracy on")
    return right / total


def _check_scores(outputs: Any) -> None:
    if not isinstance(outputs, Tensor) or outputs.ndim != 2:
        raise EvaluationError(
            f"accuracy needs outputs of (batch, classes); the model gives {described(outputs)}: "
            "give a metric of your own (metric=...)"
        )


def first_samples(batches: Iterable[Batch], count: int) -> list[Batch]:
    """The first batches that hold `count` samples together, kept so that every sub-network sees the same ones."""
    kept: list[Batch] = []
    for batch in batches:
        if count <= 0:
            break
        kept.append((_cut(batch[0], count), _cut(batch[1], count)))
        count -= batch_size(batch)
    return kept


def _cut(value: Any, count: int) -> Any:
    """The first `count` samples of the tensors in `value`."""
    return map_tensors(value, lambda one: one[:count])


class ChannelsLast:
    """Batches whose images have the layout that evaluation runs in."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return ((laid_out(inputs, "channels_last"), targets) for inputs, targets in self.batches)

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]  # a TypeError where there is no length, as there


class Evaluator:
    """Measures sub-networks of one super-network, all on the same data.

    Args:
        supernet: where the sub-networks come from.
        calibration: batches for the BatchNorm statistics, through the training transform; if None, a sub-network has
            the shared statistics, which are those of the maximal one at best.
        validation: batches that the metric is measured on; `evaluate_many` keeps them in memory.
        metric: by default top-1 accuracy. It gets a module and the batches of `validation`.
        group: so many sub-networks are evaluated together by `evaluate_many`; their tensors are in memory at once.
        metric_name: the name of the metric's value.
        autocast: a type such as `torch.bfloat16` to measure in: quicker where the machine has it, and rough, so good to
            rank by. Statistics are recalibrated in the type of the model.
    """

    def __init__(
        self,
        supernet: SuperNetwork,
        calibration: Sequence[Batch] | None,
        validation: Iterable[Batch],
        metric: Metric = accuracy,
        *,
        group: int = 50,
        metric_name: str = "accuracy",
        autocast: torch.dtype | None = None,
    ) -> None:
        self.autocast = autocast
        self.supernet, self.metric, self.group, self.metric_name = supernet, metric, group, metric_name
        self.calibration = None if calibration is None else list(ChannelsLast(calibration))
        self.validation = ChannelsLast(validation)
        self._kept: list[Batch] | None = None
        self._shuffled: list[Batch] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the values that an evaluation gives."""
        return self.metric_name, *self.supernet.cost_model.expressions

    def prepare(self, subnet: Subnet) -> GraphModule:
        """The extracted `subnet` with recalibrated statistics, in evaluation mode: what will be deployed."""
        module = self.supernet.extract(subnet).to(memory_format=torch.channels_last)
        if self.calibration is not None:
            recalibrate(module, self.calibration)
        return module.to(memory_format=torch.contiguous_format)

    def evaluate(self, subnet: Subnet) -> dict[str, float]:
        """``accuracy`` (or the metric) and the costs of `subnet`, by name."""
        return self._values(subnet, self.measure(self.prepare(subnet)))

    def evaluate_many(
        self, subnets: Sequence[Subnet], bars: Mapping[Subnet, Bar] | None = None
    ) -> list[dict[str, float] | Exception]:
        """What `evaluate` gives for each, bitwise, or the error that it raises there.

        What they have in common at the beginning of the network is computed once: much of it where the sub-networks
        are mutations of one another.

        Args:
            subnets: which.
            bars: if given, the validation samples are drawn at random, and one whose bar is out of reach after a part
                of them is measured on that part only: see `bnas.runtime.racing`. The value "part" says on which share.
        """
        groups = (subnets[start : start + self.group] for start in range(0, len(subnets), self.group))
        if bars is None:
            return [values for group in groups for values in self._evaluate_group(group)]
        return [values for group in groups for values in self._race(group, bars)]

    def measure(self, module: GraphModule) -> float:
        """The metric of a module made by `prepare`, which is folded for it and not usable for training after."""
        return self._quality(fold(module).to(memory_format=torch.channels_last), self.validation)

    @property
    def precision(self) -> str:
        """Stands behind the fingerprint of the super-network in logs of evaluations that are not exact."""
        return "" if self.autocast is None else f"-{self.autocast}".replace("torch.", "")

    def _casting(self) -> torch.autocast:
        device = device_of(self.supernet)
        return torch.autocast(device.type, self.autocast or torch.bfloat16, enabled=self.autocast is not None)

    def _quality(self, module: nn.Module, batches: Iterable[Batch]) -> float:
        with self._casting():
            return self.metric(module, batches)

    def _of_module(self, module: nn.Module, subnet: Subnet) -> dict[str, float]:
        return self._values(subnet, self._quality(module, self._batches()))

    def _values(self, subnet: Subnet, quality: float) -> dict[str, float]:
        return {self.metric_name: quality, **self.supernet.costs(subnet)}

    def _evaluate_group(self, subnets: Sequence[Subnet]) -> list[dict[str, float] | Exception]:
        try:
            modules = self._together(subnets)
        except Exception:  # one of them, or the group is too large for the memory: alone each has its own error
            return [_tried(self.evaluate, subnet) for subnet in subnets]
        return [
            _tried(partial(self._of_module, module), subnet) for subnet, module in zip(subnets, modules, strict=True)
        ]

    def _race(self, subnets: Sequence[Subnet], bars: Mapping[Subnet, Bar]) -> list[dict[str, float] | Exception]:
        if self._shuffled is None:
            self._shuffled = shuffled(self._batches())
        try:
            modules = self._prepared_together(subnets)
            places = {place: bars[subnet] for place, subnet in enumerate(subnets) if subnet in bars}
            with self._casting():
                found = race(modules, self._shuffled, self.metric, places)
        except Exception:  # as in _evaluate_group
            return [_tried(self._alone_to_the_end, subnet) for subnet in subnets]
        return [
            one if isinstance(one, Exception) else {**self._values(subnet, one.quality), "part": one.part}
            for subnet, one in zip(subnets, found, strict=True)
        ]

    def _alone_to_the_end(self, subnet: Subnet) -> dict[str, float]:
        return {**self.evaluate(subnet), "part": 1.0}

    def _together(self, subnets: Sequence[Subnet]) -> list[nn.Module]:
        """The prepared and folded sub-networks, with their outputs on the validation data."""
        modules = self._prepared_together(subnets)
        with self._casting():
            return replays(modules, self._batches())

    def _prepared_together(self, subnets: Sequence[Subnet]) -> list[GraphModule]:
        """The prepared and folded sub-networks, which have in common what they compute alike."""
        layers, folds = Layers(), Folds(fused_layer)
        modules = [self.supernet.skeleton.build(subnet, layers).eval() for subnet in subnets]
        trie = share_layers(modules, layers)
        whole = nn.ModuleList(modules).to(memory_format=torch.channels_last)
        if self.calibration is not None:
            recalibrate(whole, self.calibration, trie)
        for module in modules:
            fold(module, folds).to(memory_format=torch.channels_last)
        return modules

    def _batches(self) -> list[Batch]:
        """The validation data: outputs that are known are found by the inputs that they belong to."""
        if self._kept is None:
            device = device_of(self.supernet)
            self._kept = [(placed(inputs, device), targets) for inputs, targets in self.validation]
        return self._kept


def _tried(function: Callable[[Subnet], dict[str, float]], subnet: Subnet) -> dict[str, float] | Exception:
    try:
        return function(subnet)
    except Exception as error:
        return error
