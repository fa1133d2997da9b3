"""Steps of training on a GPU: programs against plain models, switching, sandwiches, memory, transfers, optimizers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from gpu_clock import Clock, Step, Turns, waits
from gpu_programs import tf32
from gpu_report import Report
from timing import Spread
from torch import Tensor, nn

from bnas.passes import Subnet
from bnas.runtime import Recipe, Stage, SuperNetwork, Trainer
from bnas.runtime.nested import LAYOUTS
from bnas.runtime.train.optimizers import optimizer_of

MAXIMAL, HALF, MINIMAL, SANDWICH, MEMORY = 1.03, 1.06, 1.10, 2.8, 1.10
"""Goals, as ratios."""


@dataclass(frozen=True)
class Mode:
    """How a step computes."""

    bfloat16: bool
    layout: str = "contiguous"

    def __str__(self) -> str:
        return f"{'bf16 autocast' if self.bfloat16 else 'float32 (TF32)'}, {self.layout}"


MODES = tuple(Mode(half, layout) for half in (True, False) for layout in ("channels_last", "contiguous"))
PLAN = (
    ("resnet50", MODES),
    ("mobilenet_v2", MODES),
    ("vit_b_16", (Mode(True), Mode(False))),
)


@dataclass(frozen=True)
class Bench:
    """A plain model and its super-network on a device, with a batch."""

    name: str
    mode: Mode
    plain: nn.Module
    """Shares no tensor with the super-network."""
    supernet: SuperNetwork
    images: Tensor
    targets: Tensor

    @classmethod
    def of(cls, name: str, mode: Mode, clock: Clock, small: bool, side: int = 224) -> Bench:
        """That of a network of torchvision at 224 x 224, batch 64."""
        side, count = (224 if name.startswith("vit") else min(side, 64) if small else side), (2 if small else 64)
        images = torch.randn(count, 3, side, side, device=clock.device).contiguous(memory_format=LAYOUTS[mode.layout])
        targets = torch.randint(10, (count,), device=clock.device)
        model, plain = (make(name, clock, mode) for _ in range(2))
        return cls(name, mode, plain, SuperNetwork.from_model(model, images[:2]).train(), images, targets)

    @property
    def half(self) -> Subnet:
        """All widths at 50 %, nothing skipped."""
        return replace(self.supernet.space.maximal(), widths=self.supernet.space.minimal().widths)

    def alone(self, subnet: Subnet) -> nn.Module:
        """The extracted module, which trains parameters of its own."""
        return self.supernet.extract(subnet).train().to(memory_format=LAYOUTS[self.mode.layout])

    def forward(self, module: nn.Module) -> Tensor:
        """The outputs."""
        with torch.autocast(self.images.device.type, torch.bfloat16, enabled=self.mode.bfloat16):
            out: Tensor = module(self.images)
        return out.float()

    def accumulation(self, module: nn.Module) -> Step:
        """Forward and backward, into the gradients that are there."""
        return lambda: F.cross_entropy(self.forward(module), self.targets).backward()

    def training(self, module: nn.Module, owner: nn.Module) -> Step:
        """The same with ``zero_grad`` before, and an optimizer on all parameters of `owner` after it."""
        accumulate = self.accumulation(module)
        optimizer = torch.optim.SGD(owner.parameters(), lr=1e-6, momentum=0.9, weight_decay=1e-4)

        def step() -> None:
            optimizer.zero_grad()
            accumulate()
            optimizer.step()

        return step

    def several(self, choose: Callable[[], Sequence[Subnet]]) -> Step:
        """A step of chosen sub-networks, programs made anew; all but the first learn from the first one's outputs."""
        optimizer = torch.optim.SGD(self.supernet.parameters(), lr=1e-6, momentum=0.9)

        def step() -> None:
            optimizer.zero_grad()
            first, *others = choose()
            out = self.forward(self.supernet.program(first))
            F.cross_entropy(out, self.targets).backward()
            soft = out.detach().softmax(1)
            for subnet in others:
                F.cross_entropy(self.forward(self.supernet.program(subnet)), soft).backward()
            optimizer.step()

        return step

    def sandwich(self) -> Callable[[], Sequence[Subnet]]:
        """Maximal, minimal and two random ones."""
        space, generator = self.supernet.space, np.random.default_rng(0)
        return lambda: (space.maximal(), space.minimal(), space.sample(generator), space.sample(generator))


def make(name: str, clock: Clock, mode: Mode) -> nn.Module:
    """A network of torchvision in training mode, with random weights."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, num_classes=10)
    return model.to(clock.device, memory_format=LAYOUTS[mode.layout]).train()


def ratios(name: str, mode: Mode, clock: Clock, small: bool, add: Any) -> None:
    """Maximal, half and minimal programs against plain models that train alone."""
    bench = Bench.of(name, mode, clock, small)
    space, program = bench.supernet.space, bench.supernet.program

    def training() -> tuple[Step, Step]:
        shared = bench.training(program(space.maximal()), bench.supernet)
        return shared, bench.training(bench.plain, bench.plain)

    def accumulation(subnet: Subnet) -> tuple[Step, Step]:
        return bench.accumulation(program(subnet)), bench.accumulation(bench.alone(subnet))

    pairs: dict[str, tuple[float, Callable[[], tuple[Step, Step]]]] = {
        "maximal": (MAXIMAL, training),
        "half widths": (HALF, partial(accumulation, bench.half)),
        "minimal": (MINIMAL, partial(accumulation, space.minimal())),
    }
    for what, (goal, pair) in pairs.items():
        steps = dict(zip(("shared", "plain"), pair(), strict=True))
        turns = Turns.of(clock, steps, 1 if small else 11)
        found, busy = turns.ratio("shared", "plain"), [clock.busy(run) for run in steps.values()]
        device, host = ([of(one) for one in steps] for of in (turns.ms, turns.queued))
        add(name, str(mode), what, found, goal, found.median <= goal, *device, *host, *busy, busy[0] / busy[1])


def switching(clock: Clock, small: bool, add: Any) -> None:
    """Steps whose programs are made in the step, against the same programs made before."""
    for mode in (Mode(True, "channels_last"), Mode(False, "contiguous")):
        bench = Bench.of("resnet50", mode, clock, small)
        again = SuperNetwork.from_model(make("resnet50", clock, mode), bench.images[:2]).train()
        generator, space = np.random.default_rng(1), bench.supernet.space
        chosen = [space.sample(generator) for _ in range(3 if small else 12)]
        made = [bench.accumulation(bench.supernet.program(one)) for one in chosen]
        fresh = [partial(_fresh, bench, bench.supernet, one) for one in chosen]
        unseen = [partial(_fresh, bench, again, one) for one in chosen]
        for run in made:
            run()
        seconds = [clock.measure(partial(bench.supernet.program, space.sample(generator)))[1] for _ in chosen]
        known = [clock.measure(partial(bench.supernet.program, one))[1] for one in chosen]
        rounds = [[clock.measure(partial(_all, some)) for some in (made, fresh)] for _ in range(5)]
        first = clock.measure(partial(_all, unseen))[0] / len(chosen)
        before, inside = ([took[number][0] / len(chosen) for took in rounds] for number in (0, 1))
        ratio = Spread([b / a for a, b in zip(before, inside, strict=True)])
        add(str(mode), Spread(seconds), Spread(known), Spread(before).median, Spread(inside).median, ratio, first)


def _all(runs: Sequence[Step]) -> None:
    for run in runs:
        run()


def _fresh(bench: Bench, supernet: SuperNetwork, subnet: Subnet) -> None:
    bench.accumulation(supernet.program(subnet))()


def synchronisations(clock: Clock, small: bool, add: Any) -> None:
    """What the host waits for: in making a program, in a step of one's own loop, and in one of the trainer."""
    bench = Bench.of("resnet18" if small else "resnet50", Mode(True, "channels_last"), clock, small)
    generator, sandwich = np.random.default_rng(2), bench.several(bench.sandwich())
    program = bench.supernet.program(bench.half)
    sandwich()
    for what, run in (
        ("program(), structure unseen", lambda: bench.supernet.program(bench.supernet.space.sample(generator))),
        ("program(), structure seen", lambda: bench.supernet.program(bench.half)),
        ("forward and backward", bench.accumulation(program)),
        ("step with SGD", bench.training(program, bench.supernet)),
        ("sandwich step of 4 in one's own loop", sandwich),
    ):
        add(what, *waits(clock, run).shown())
    cells: list[tuple[Any, ...]] = []
    for count in (4, 12):
        found = waits(clock, partial(_fit, bench, count))
        cells.append((sum(found.reads.values()), found.warned, sum(found.calls.values())))
    add("a step of `Trainer.fit` (12 steps less 4, by 8)", *((b - a) / 8 for a, b in zip(*cells, strict=True)))


def _fit(bench: Bench, batches: int) -> None:
    """Train for so many steps on what is on the device already."""
    data = [(bench.images, bench.targets)] * batches
    recipe = Recipe(precision="bfloat16", memory_format="channels_last", num_bn_adaptation_samples=0)
    Trainer(bench.supernet, [Stage(("depth", "width"))], recipe, watch=0).fit(data)


def together(clock: Clock, small: bool, add: Any) -> None:
    """A sandwich step against that of the maximal program, and against a plain one; peak memory of all three."""
    for name in ("resnet18",) if small else ("resnet50", "mobilenet_v2"):
        mode = Mode(True, "channels_last")
        bench = Bench.of(name, mode, clock, small)
        whole = (bench.supernet.space.maximal(),)
        steps = {
            "sandwich": bench.several(bench.sandwich()),
            "maximal": bench.several(partial(tuple, whole)),
            "plain": bench.training(bench.plain, bench.plain),
        }
        turns = Turns.of(clock, steps, 1 if small else 9, 1)
        peaks = {what: clock.peak(run) for what, run in steps.items()}
        ms = [turns.ms(one) for one in steps]
        found = turns.ratio("sandwich", "maximal")
        shares = [peaks[one] / peaks["plain"] for one in ("maximal", "sandwich")]
        add(name, str(mode), found, found.median <= SANDWICH, *ms, peaks["plain"], *shares)


def transfers(clock: Clock, small: bool, add: Any) -> None:
    """A batch from pageable and from pinned memory: how long the host waits, and what a step takes with it."""
    bench = Bench.of("resnet18" if small else "resnet50", Mode(True, "channels_last"), clock, small)
    pageable = bench.images.cpu()
    sources = {"pageable": pageable, "pinned": pageable.pin_memory() if clock.cuda else pageable}
    step = bench.training(bench.plain, bench.plain)
    moves: dict[str, Step] = {
        what: partial(source.to, clock.device, non_blocking=True) for what, source in sources.items()
    }
    both = {what: partial(_both, move, step) for what, move in moves.items()}
    turns = Turns.of(clock, {"on the device": step, **both}, 1 if small else 9)
    for what, move in moves.items():
        move()
        alone = [clock.measure(move) for _ in range(7)]
        took, queued = (Spread([one[part] for one in alone]).median for part in (0, 1))
        add(what, took, queued, turns.ratio(what, "on the device"))


def _both(move: Step, step: Step) -> None:
    move()
    step()


def optimizers(clock: Clock, small: bool, add: Any) -> None:
    """Steps of the default and the fused optimizers of PyTorch, without forward and backward."""
    for name in ("resnet18",) if small else ("resnet50", "vit_b_16"):
        model = make(name, clock, Mode(False))
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        for kind in ("sgd", "adamw"):
            made = optimizer_of(Recipe(optimizer=kind), list(model.parameters()), dict(model.named_parameters()))  # type: ignore[arg-type]
            settings = {key: made.defaults[key] for key in ("lr", "momentum", "weight_decay") if key in made.defaults}
            plain, fused = (type(made)(model.parameters(), **settings, fused=one) for one in (None, True))  # type: ignore[call-arg]
            turns = Turns.of(clock, {"plain": plain.step, "fused": fused.step}, 1 if small else 11, 5)
            add(
                name,
                kind,
                turns.ms("plain"),
                turns.ms("fused"),
                turns.ratio("fused", "plain"),
                bool(made.defaults["fused"]),
            )


def compiled(clock: Clock, small: bool, add: Any) -> None:
    """`torch.compile` of a program of one structure: equal, and how fast."""
    tf32(False)
    bench = Bench.of("resnet18", Mode(False), clock, small, side=64)
    program = bench.supernet.program(bench.half)
    backend = "aot_eager" if small and not clock.cuda else "inductor"
    quick = torch.compile(program, backend=backend)
    found = []
    for one in (program, quick):
        bench.supernet.zero_grad(set_to_none=True)
        out = bench.forward(one)
        F.cross_entropy(out, bench.targets).backward()
        grads = [p.grad for p in bench.supernet.parameters() if p.grad is not None]
        found.append((out.detach(), torch.cat([grad.reshape(-1) for grad in grads])))
    errors = [float((b - a).norm() / a.norm()) for a, b in zip(*found, strict=True)]
    steps = {"compiled": bench.accumulation(quick), "program": bench.accumulation(program)}
    turns = Turns.of(clock, steps, 1 if small else 9, 2)
    add(backend, *errors, max(errors) <= 1e-4, turns.ms("compiled"), turns.ms("program"))
    tf32(True)


STEPS = (
    *("network", "mode", "sub-network", "ratio (quartiles)", "goal", "met", "program, ms", "plain, ms"),
    *("queued by the host, ms", "plain", "kernels, ms", "plain's", "ratio of kernels"),
)
PARTS = {
    "waiting": (synchronisations, 12, "What the host waits for (the profiler's own end is one cudaDeviceSynchronize)"),
    "switching": (switching, 20, "ResNet-50, batch 64: programs made in the step against programs made before"),
    "together": (
        together,
        15,
        "Sandwich steps (max, min, two random); peak memory of a step beyond parameters, gradients and momentum",
    ),
    "transfers": (transfers, 8, "A batch of 64 images of 224 x 224 in float32"),
    "optimizers": (optimizers, 8, "Steps of optimizers"),
    "compiled": (compiled, 45, "torch.compile of a program of ResNet-18, half widths, against the program itself"),
}
HEADS = {
    "waiting": ("what", "reads of values", "warned by the debug mode", "waiting calls of CUDA"),
    "switching": (
        *("mode", "program() unseen, host ms", "program() seen, host ms", "step, programs made before, ms"),
        *("step, made in it, ms", "ratio (quartiles)", "structure unseen, ms"),
    ),
    "together": (
        *("network", "mode", "sandwich / maximal", f"<= {SANDWICH}", "sandwich, ms", "maximal, ms", "plain, ms"),
        *("peak of plain, MiB", "of maximal / plain", "of sandwich / plain"),
    ),
    "transfers": ("memory", "transfer, ms", "host is held, ms", "step with it / step on the device"),
    "optimizers": ("network", "optimizer", "default, ms", "fused, ms", "fused / default", "fused in bnas's recipe"),
    "compiled": ("backend", "error of outputs", "error of gradients", "<= 1e-4", "compiled, ms", "program, ms"),
}


def steps(report: Report, clock: Clock, small: bool) -> None:
    """All tables of this part; single precision with TF32."""
    tf32(True)
    warnings.filterwarnings("ignore", message=".*lr_scheduler.*")
    add = report.table("steps", "Steps: program against plain model, taken in turns, batch 64, 224 x 224", STEPS)
    for name, modes in PLAN:
        for mode in modes[:1] if small else modes:
            report.tried(f"steps of {name}, {mode}", partial(ratios, name, mode, clock, small, add), 12)
    for part, (run, seconds, title) in PARTS.items():
        report.tried(part, partial(run, clock, small, report.table(part, title, HEADS[part])), seconds)
