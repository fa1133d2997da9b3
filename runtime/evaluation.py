"""The accuracy of a sub-network: BatchNorm recalibrated on tensors of its own, conv and BN folded, then measured.

Nothing here touches the shared parameters or statistics: an evaluation works on an extracted copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from bnas.passes import BnasError, Subnet
from bnas.passes.ir import as_program_call

from .heap import keep_freed_memory
from .layout import device_of, laid_out, placed
from .nested import batch_size, described, map_tensors
from .overwriting import overwrite
from .racing import Bar, Raced, race, shuffled
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


M = TypeVar("M", bound=nn.Module)

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
        keep_freed_memory()
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
        return self._recalibrated(self.supernet.extract(subnet)).to(memory_format=torch.contiguous_format)

    def evaluate(self, subnet: Subnet) -> dict[str, float]:
        """``accuracy`` (or the metric) and the costs of `subnet`, by name."""
        return self._values(subnet, self._alone(subnet).quality)

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
        if bars is not None and self._shuffled is None:
            self._shuffled = shuffled(self._batches())
        groups = (subnets[start : start + self.group] for start in range(0, len(subnets), self.group))
        return [values for group in groups for values in self._evaluate_group(group, bars)]

    def measure(self, module: GraphModule) -> float:
        """The metric of a module made by `prepare`, which is folded for it and not usable for training after."""
        return self._quality(_quick(overwrite(fold(module))), self.validation)

    @property
    def precision(self) -> str:
        """Stands behind the fingerprint of the super-network in logs of evaluations that are not exact."""
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
            return self.metric(module, batches)

    def _values(self, subnet: Subnet, quality: float) -> dict[str, float]:
        return {self.metric_name: quality, **self.supernet.costs(subnet)}

    def _alone(self, subnet: Subnet) -> Raced:
        module = self._recalibrated(overwrite(self.supernet.extract(subnet)))
        return Raced(self._quality(_quick(fold(module)), self.validation), 1.0)

    def _evaluate_group(
        self, subnets: Sequence[Subnet], bars: Mapping[Subnet, Bar] | None
    ) -> list[dict[str, float] | Exception]:
        found: Sequence[Raced | Exception]
        try:
            found = self._together(subnets) if bars is None else self._race(subnets, bars)
        except Exception:  # one of them, or the group is too large for the memory: alone each has its own error
            found = [_tried(self._alone, subnet) for subnet in subnets]
        return [
            one
            if isinstance(one, Exception)
            else self._values(subnet, one.quality) | ({} if bars is None else {"part": one.part})
            for subnet, one in zip(subnets, found, strict=True)
        ]

    def _together(self, subnets: Sequence[Subnet]) -> list[Raced | Exception]:
        """Each measured to the end, on outputs on the validation data that are computed for all of them."""
        modules, batches = self._prepared_together(subnets), self._batches()
        with self._casting():
            known = replays(modules, batches)
        return [_tried(lambda module: Raced(self._quality(module, batches), 1.0), one) for one in known]

    def _race(self, subnets: Sequence[Subnet], bars: Mapping[Subnet, Bar]) -> list[Raced | Exception]:
        assert self._shuffled is not None
        places = {place: bars[subnet] for place, subnet in enumerate(subnets) if subnet in bars}
        modules = self._prepared_together(subnets)
        with self._casting():
            return race(modules, self._shuffled, self.metric, places)

    def _prepared_together(self, subnets: Sequence[Subnet]) -> list[GraphModule]:
        """The prepared and folded sub-networks, which have in common what they compute alike."""
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
        """The validation data: outputs that are known are found by the inputs that they belong to."""
        if self._kept is None:
            device = device_of(self.supernet)
            self._kept = [(placed(inputs, device), targets) for inputs, targets in self.validation]
        return self._kept


def _quick(module: M) -> M:
    """`module` in the memory layout that evaluation runs in."""
    return module.to(memory_format=torch.channels_last)


def _tried(function: Callable[[Any], Raced], argument: Any) -> Raced | Exception:
    try:
        return function(argument)
    except Exception as error:
        return error
