"""Which modules that look at values `torch.export` takes, and which of their programs bnas can read.

    python tests/benchmarks/export_kinds.py

Each kind is a step inside a module of one layer. A program is *right* if it computes what the module computes on five
other inputs, of other values and another batch. bnas *reads* it if it becomes a super-network that computes the same.
"""

from __future__ import annotations

import contextlib
import io
import logging
import random
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from bnas.passes import BnasError
from bnas.runtime import SuperNetwork

Step = Callable[[nn.Module, Tensor], Tensor]


class Flipped(torch.autograd.Function):
    """The identity, whose gradient is reversed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """As in torch."""
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """As in torch."""
        return -gradient


def branch(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x) if x.sum() > 0 else x * 2


def loop(layer: nn.Module, x: Tensor) -> Tensor:
    y = layer(x)
    while y.norm() > 1:
        y = y / 2
    return y


def error_by_value(layer: nn.Module, x: Tensor) -> Tensor:
    if x.isnan().any():
        raise ValueError("not a number")
    return layer(x)


def assertion(layer: nn.Module, x: Tensor) -> Tensor:
    assert (x < 1e6).all()
    return layer(x)


def assertion_on_item(layer: nn.Module, x: Tensor) -> Tensor:
    assert x.max().item() < 1e6
    return layer(x)


def printed(layer: nn.Module, x: Tensor) -> Tensor:
    layer.note = f"{x.mean():.3f}"
    return layer(x)


def item_as_number(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x) * x.abs().max().item()


def item_as_size(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x) + x.new_ones(int(x.abs().sum().clamp(1, 3).item()), 8).mean(0)


def mask(layer: nn.Module, x: Tensor) -> Tensor:
    y = layer(x)
    return y[y > 0].sum() + y


def nonzero(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x) + len(torch.nonzero(x > 0))


def unique(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x) + torch.unique((x > 0).long()).float().mean()


def numpy_round_trip(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x) + torch.from_numpy(np.sin(x.detach().numpy()))


def numpy_number(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x) * float(np.mean(x.detach().numpy()))


def data_ptr(layer: nn.Module, x: Tensor) -> Tensor:
    assert x.data_ptr()
    return layer(x)


def python_random(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x) if random.random() < 0.5 else x


def own_backward(layer: nn.Module, x: Tensor) -> Tensor:
    return Flipped.apply(layer(x))


def vmap(layer: nn.Module, x: Tensor) -> Tensor:
    return torch.vmap(lambda row: row * row.sum())(layer(x))


def cond(layer: nn.Module, x: Tensor) -> Tensor:
    return torch.cond(x.sum() > 0, lambda z: layer(z), lambda z: z * 2, (x,))


class Kind(nn.Module):
    """A layer and a step."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.layer, self.step = nn.Linear(8, 8), step

    def forward(self, x: Tensor) -> Tensor:
        """Take the step."""
        return self.step(self.layer, x)


class Inside(nn.Module):
    """A module between two layers."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.stem, self.part, self.head = nn.Linear(8, 8), part, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Call one after the other."""
        return self.head(self.part(self.stem(x)))


def kinds() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """The modules, by name."""
    steps = (branch, loop, error_by_value, assertion, assertion_on_item, printed, item_as_number, item_as_size, mask)
    more = (nonzero, unique, numpy_round_trip, numpy_number, data_ptr, python_random, own_backward, vmap, cond)
    for step in (*steps, *more):
        yield step.__name__, lambda step=step: Kind(step)
    yield "scripted", lambda: torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.ReLU()))
    yield "traced", lambda: torch.jit.trace(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), torch.randn(2, 8))


def captured(part: nn.Module) -> str:
    """How bnas captures a model with that part."""
    try:
        told = [str(one) for one in SuperNetwork.from_model(Inside(part).eval(), torch.randn(4, 8)).diagnostics]
    except BnasError:
        return "refused"
    found = (word for word in ("captured by torch.export", "opaque") if any(word in one for one in told))
    return {"captured by torch.export": "exported alone"}.get(word := next(found, "recorded"), word)


def agrees(run: Callable[[Tensor], Tensor], part: nn.Module) -> bool:
    """Whether `run` computes what `part` computes on other inputs."""
    x = torch.randn(4, 8)
    for seed, given in enumerate((x, x.abs(), -x.abs(), torch.zeros(4, 8), torch.randn(6, 8) * 3)):
        random.seed(seed)
        expected = part(given)
        random.seed(seed)
        if not torch.allclose(run(given), expected, 1e-4, 1e-5):
            return False
    return True


def program_of(part: nn.Module, strict: bool) -> tuple[ExportedProgram | None, float]:
    """The program with a dynamic batch, and the CPU seconds that it took."""
    start = time.process_time()
    try:
        found = export(part, (torch.randn(4, 8),), dynamic_shapes=({0: Dim.DYNAMIC},), strict=strict)
    except Exception:
        found = None
    return found, time.process_time() - start


def told_of(part: nn.Module, strict: bool) -> str:
    """What becomes of an export."""
    found, seconds = program_of(part, strict)
    if found is None:
        return f"no, {seconds:.1f} s"
    right = "right" if agrees(found.module(check_guards=False), part) else "wrong"
    try:
        supernet = SuperNetwork.from_model(found)
        read = "read" if agrees(supernet.program(supernet.space.maximal()), part) else "read, wrong"
    except BnasError:
        read = "not read"
    return f"{right}, {read}, {seconds:.1f} s"


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    table = Table("kind", "in a model", "strict=False", "strict=True", title=f"PyTorch {torch.__version__}")
    for name, make in kinds():
        torch.manual_seed(0)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            part = make().eval()
            row = captured(make()), *(told_of(part, strict) for strict in (False, True))
        table.add_row(name, *row)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
