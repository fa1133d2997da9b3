"""Programs on a GPU against the same ones on the CPU: outputs, gradients, statistics, extraction, evaluation."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torchvision
from gpu_clock import Clock
from gpu_report import Report
from torch import Tensor, nn

from bnas.passes import Subnet
from bnas.passes.frontend.structure import tensors_of
from bnas.runtime import Evaluator, SuperNetwork, recalibrate

GOAL = 1e-4
"""Of the errors in single precision, relative to the norm of all entries."""
NAMES = ("resnet18", "resnet50", "mobilenet_v2", "vit_b_16", "text")
HEAD = (
    *("network", "sub-network", "outputs", "gradients", "statistics"),
    *("gradients in float64", "gradients, CPU to float64", f"<= {GOAL:g}"),
)
AFTER = ("network", "sub-network", "extracted", "recalibrated", "accuracy CPU", "accuracy here", "in a group")


class Text(nn.Module):
    """A small encoder of tokens with a mask, from PyTorch's own layers."""

    def __init__(self, width: int = 128, heads: int = 4, layers: int = 3, words: int = 1000) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(128, width)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        x = self.encoder(x, src_key_padding_mask=mask == 0)
        weights = mask.unsqueeze(-1).to(x.dtype)
        return self.head((x * weights).sum(1) / weights.sum(1))


def make(name: str) -> nn.Module:
    """A network with random weights, and no dropout."""
    torch.manual_seed(0)
    model = Text() if name == "text" else torchvision.models.get_model(name, weights=None, num_classes=10)
    for one in model.modules():
        if isinstance(one, nn.Dropout):
            one.p = 0.0
    for one in model.parameters():
        if not one.any():  # biases, and the head of a ViT, whose outputs would be 0
            nn.init.normal_(one, std=0.02)
    return model


def inputs(name: str, count: int, small: bool, seed: int = 0) -> Any:
    """A batch for it."""
    generator = torch.Generator().manual_seed(seed)
    if name == "text":
        mask = torch.ones(count, 24, dtype=torch.long)
        mask[::2, 15:] = 0
        return {"ids": torch.randint(1000, (count, 24), generator=generator), "mask": mask}
    side = 224 if name.startswith("vit") else 48 if small else 128
    return torch.randn(count, 3, side, side, generator=generator)


def choices(supernet: SuperNetwork) -> Iterator[tuple[str, Subnet]]:
    """The ends of the space, half widths, and two random sub-networks."""
    space = supernet.space
    yield "maximal", space.maximal()
    yield "half widths", replace(space.maximal(), widths=space.minimal().widths)
    yield "minimal", space.minimal()
    yield "random 1", space.sample(1)
    yield "random 2", space.sample(2)


def moved(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Inputs on a device, in a floating-point type."""
    if isinstance(value, dict):
        return {name: moved(one, device, dtype) for name, one in value.items()}
    return value.to(device, dtype) if value.is_floating_point() else value.to(device)


@dataclass(frozen=True)
class Found:
    """What a step of training leaves, on the CPU in double precision."""

    outputs: list[Tensor]
    gradients: list[Tensor]
    statistics: list[Tensor]


def trained(supernet: SuperNetwork, subnet: Subnet, given: Any, device: torch.device, dtype: torch.dtype) -> Found:
    """Forward and backward of a program in training mode; the shared tensors are put back."""
    supernet.to(device, dtype).train().zero_grad(set_to_none=True)
    before = copy.deepcopy(supernet.model.state_dict())
    placed = moved(given, device, dtype)
    program = supernet.program(subnet)
    out = program(**placed) if isinstance(placed, dict) else program(placed)
    generator = torch.Generator().manual_seed(3)
    factor = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out)
    (out * factor).sum().backward()
    gradients = [p.grad for p in supernet.parameters() if p.grad is not None]
    statistics = [b for b in supernet.model.buffers() if b.is_floating_point()]
    found = Found(*([one.detach().cpu().double().clone() for one in some] for some in ([out], gradients, statistics)))
    supernet.model.load_state_dict(before)
    return found


def error(mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The norm of the difference relative to that of the reference, over all tensors together."""
    if not theirs:
        return 0.0
    ours, reference = (torch.cat([one.reshape(-1) for one in some]) for some in (mine, theirs))
    return float((ours - reference).norm() / reference.norm())


def compare(name: str, clock: Clock, small: bool, add: Any) -> None:
    """A row for each sub-network of one network."""
    host, device = torch.device("cpu"), clock.device
    given = inputs(name, 4 if small or name.startswith("vit") else 8, small)
    supernet = SuperNetwork.from_model(make(name), given)
    for what, subnet in choices(supernet):
        single, double = torch.float32, torch.float64
        here, there = (trained(supernet, subnet, given, one, single) for one in (device, host))
        exact = [trained(supernet, subnet, given, one, double).gradients for one in (device, host)]
        supernet.to(host, single)
        errors = [error(getattr(here, one), getattr(there, one)) for one in ("outputs", "gradients", "statistics")]
        add(name, what, *errors, error(*exact), error(there.gradients, exact[1]), max(errors) <= GOAL)


def after(name: str, clock: Clock, small: bool, add: Any) -> None:
    """Extraction, recalibration and evaluation of one network, against the CPU."""
    host = SuperNetwork.from_model(make(name).eval(), inputs(name, 4, small)).eval()
    device = copy.deepcopy(host).to(clock.device).eval()
    calibration = [(inputs(name, 8, small, seed), torch.zeros(8, dtype=torch.long)) for seed in range(2)]
    labelled = [(batch, _classes(host, batch)) for batch in (inputs(name, 16, small, 10), inputs(name, 16, small, 11))]
    evaluators = [Evaluator(one, calibration, labelled) for one in (host, device)]
    subnets = dict(list(choices(host))[: 3 if small else 5])
    group = evaluators[1].evaluate_many(list(subnets.values()))
    for (what, subnet), together in zip(subnets.items(), group, strict=True):
        pair = [one.extract(subnet) for one in (host, device)]
        extracted = error(*reversed([_outputs(one, labelled[0][0]) for one in pair]))
        for one in pair:
            recalibrate(one, calibration)
        again = error(*reversed([_outputs(one, labelled[0][0]) for one in pair]))
        found = [one.evaluate(subnet)["accuracy"] for one in evaluators]
        if isinstance(together, Exception):
            raise together
        add(name, what, extracted, again, *found, together["accuracy"])


def _classes(supernet: SuperNetwork, batch: Any) -> Tensor:
    return _outputs(supernet.extract(supernet.space.maximal()), batch)[0].argmax(1)


def _outputs(module: nn.Module, batch: Any) -> list[Tensor]:
    device = next(module.parameters()).device
    placed = moved(batch, device, torch.float32)
    with torch.no_grad():
        out = module(**placed) if isinstance(placed, dict) else module(placed)
    return [one.detach().cpu().double() for one in tensors_of(out)]


def programs(report: Report, clock: Clock, small: bool) -> None:
    """All tables of this part, in full single precision."""
    tf32(False)
    warnings.filterwarnings("ignore", message=".*enable_nested_tensor.*")
    names = ("resnet18", "text") if small else NAMES
    add = report.table("programs", f"Programs on {clock.device.type} against the CPU: relative errors of a step", HEAD)
    for name in names:
        report.tried(f"programs of {name}", lambda name=name: compare(name, clock, small, add), 15)  # type: ignore[misc]
    add_after = report.table("evaluation", "Extracted, recalibrated, evaluated: relative errors, and accuracy", AFTER)
    for name in ("resnet18", "text") if small else ("resnet18", "mobilenet_v2", "text"):
        report.tried(f"evaluation of {name}", lambda name=name: after(name, clock, small, add_after), 10)  # type: ignore[misc]


def tf32(on: bool) -> None:
    """Whether products of single precision may be rounded to TF32 on the way."""
    torch.backends.cuda.matmul.allow_tf32 = on
    torch.backends.cudnn.allow_tf32 = on
