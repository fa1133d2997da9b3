"""ResNet-56 on CIFAR-10 on a GPU: bnas, and pruning once with fine-tuning, in the same time on the wall clock.

Both begin with the same pre-trained weights, see the same 45,000 images and end with the same fine-tuning: a plain loop
that learns from the targets and from the frozen original. The rival prunes all widths alike by their L1 norms and has
all its time for that loop. bnas trains a super-network, searches and fine-tunes: what it spends before the loop counts
once for all rows of the table.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from gpu_clock import Clock
from gpu_programs import tf32
from gpu_report import Report, release
from steps import example
from torch import Tensor, nn

import bnas
from bnas.passes import Subnet
from bnas.runtime import accuracy, first_samples, recalibrate

FEWER = (2.11, 2.55)
"""Times fewer MACs."""
BEFORE, SEARCH = 0.3, 0.12
"""Shares of the time of bnas: for the super-network, and for the search."""
OURS = bnas.Elasticity(("depth", "width"), (1.0, 0.875, 0.75, 0.625), min_width=4, divisor=2)
ALIKE = bnas.Elasticity(("width",), tuple(one / 64 for one in range(64, 15, -1)), min_width=4, divisor=1)
HEAD = (
    "method",
    "fewer MACs",
    "before fine-tuning",
    "test top-1",
    "minus original",
    "epochs alone",
    "steps",
    "seconds",
)


class Images:
    """Batches of normalised images, made on the device; with `augment` shuffled, cropped after padding, flipped."""

    def __init__(self, images: Tensor, labels: Tensor, batch: int, augment: bool, length: int | None = None) -> None:
        pad = F.pad(images.permute(0, 3, 1, 2), (4, 4, 4, 4))
        self.images, self.labels, self.batch, self.augment = (
            pad.permute(0, 2, 3, 1).contiguous(),
            labels,
            batch,
            augment,
        )
        self.length = length
        mean, std = example().MEAN, example().STD
        self.mean, self.std = (torch.tensor(one, device=images.device) for one in (mean, std))
        self.places = torch.arange(32, device=images.device)

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch) if self.length is None else self.length

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        left = len(self)
        while left > 0:
            for chosen in self._order().split(self.batch)[:left]:
                yield self.crop(chosen), self.labels[chosen]
                left -= 1

    def _order(self) -> Tensor:
        make = torch.randperm if self.augment else torch.arange
        return make(len(self.labels), device=self.labels.device)

    def crop(self, chosen: Tensor) -> Tensor:
        """The images of these numbers."""
        shape, device = (2, len(chosen), 1), chosen.device
        y, x = torch.randint(9, shape, device=device) if self.augment else torch.full(shape, 4, device=device)
        rows, columns = y + self.places, x + self.places
        if self.augment:
            flip = torch.randint(2, (len(chosen), 1), device=device).bool()
            columns = torch.where(flip, columns.flip(1), columns)
        images = self.images[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]
        made: Tensor = ((images / 255 - self.mean) / self.std).permute(0, 3, 1, 2)
        return made  # channels_last in memory


@dataclass(frozen=True)
class Data:
    """What both methods see: the original, training and held-out images on the device, and those of the test."""

    original: nn.Module
    train: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]
    test: Images
    small: bool

    @classmethod
    def read(cls, folder: Path, device: torch.device, small: bool) -> Data:
        """From the folder that `examples/cifar10.py` describes."""
        read = example()
        count = 200 if small else None

        def images(split: str) -> tuple[Tensor, Tensor]:
            pixels, labels = read.read_images(folder, split)
            return tuple(torch.from_numpy(one[:count]).to(device) for one in (pixels, labels))  # type: ignore[return-value]

        pixels, labels = images("train")
        cut = len(labels) - (40 if small else read.HELD_OUT)
        original = read.read_model(folder, 56).to(device, memory_format=torch.channels_last).requires_grad_(False)
        train, held_out = (pixels[:cut], labels[:cut]), (pixels[cut:], labels[cut:])
        return cls(original, train, held_out, Images(*images("test"), 200 if small else 1000, augment=False), small)

    def loader(self, batch: int, length: int | None = None) -> Images:
        """Training batches."""
        return Images(*self.train, 4 if self.small else batch, augment=True, length=length)

    def tested(self, module: nn.Module) -> float:
        """Top-1 on the test images in percent."""
        return 100 * accuracy(copy.deepcopy(module).eval().to(memory_format=torch.channels_last), self.test)

    def supernet(self, elasticity: bnas.Elasticity) -> bnas.SuperNetwork:
        """That of a copy of the original."""
        model = copy.deepcopy(self.original).requires_grad_(True)
        found = bnas.SuperNetwork.from_model(model, torch.zeros(2, 3, 32, 32, device=self.train[1].device), elasticity)
        return found.eval()


class Loop:
    """The plain loop: SGD along a cosine that ends when the time is up.

    On a GPU forward and backward are one CUDA graph, where that can be recorded: steps so small wait for Python else.
    """

    BATCH, RATE, DECAY = 128, 0.04, 5e-4

    def __init__(self, module: nn.Module, data: Data) -> None:
        self.module, self.data = module.train().to(memory_format=torch.channels_last), data
        fused = data.train[1].is_cuda
        self.optimizer = torch.optim.SGD(
            module.parameters(), lr=self.RATE, momentum=0.9, nesterov=True, weight_decay=self.DECAY, fused=fused
        )
        self.graph: torch.cuda.CUDAGraph | None = None
        self.steps = 0
        self.images, self.labels = next(iter(data.loader(self.BATCH)))

    def accumulate(self) -> None:
        """Forward and backward on the batch that is there."""
        device = self.images.device.type
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda", cache_enabled=False):
            with torch.no_grad():
                soft = self.data.original(self.images).float().softmax(1)
            out = self.module(self.images).float()
        (F.cross_entropy(out, self.labels) + F.cross_entropy(out, soft)).backward()

    def record(self) -> None:
        """Record that as a graph, after a warm-up whose statistics are undone."""
        before = copy.deepcopy(self.module.state_dict())
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.accumulate()
        torch.cuda.current_stream().wait_stream(side)
        self.optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.accumulate()
        self.module.load_state_dict(before)
        self.graph = graph

    def run(self, seconds: float, note: Callable[[str], None]) -> None:
        """Train until so many seconds have passed, one at least."""
        start, seconds = time.perf_counter(), max(seconds, 1.0)
        if self.images.is_cuda:
            try:
                self.record()
            except Exception as error:
                note(f"no CUDA graph, the loop runs step by step: {error}")
                self.optimizer.zero_grad(set_to_none=True)
        share = 0.0
        while share < 1:
            for batch in self.data.loader(self.BATCH):
                share = (time.perf_counter() - start) / seconds
                if share >= 1:
                    break
                self._step(batch, share)

    def _step(self, batch: tuple[Tensor, Tensor], share: float) -> None:
        if len(batch[1]) < len(self.labels):
            return  # the last, short batch of an epoch does not fit the graph
        for mine, given in zip((self.images, self.labels), batch, strict=True):
            mine.copy_(given)
        if self.graph is None:
            self.optimizer.zero_grad()
            self.accumulate()
        else:
            self.graph.replay()
        for group in self.optimizer.param_groups:
            group["lr"] = self.RATE * 0.5 * (1 + math.cos(math.pi * share))
        self.optimizer.step()
        self.steps += 1
        if self.steps % 8 == 0 and self.images.is_cuda:
            torch.cuda.synchronize()  # the host must not run ahead of the clock

    @property
    def epochs(self) -> float:
        """Epochs so far."""
        return self.steps * len(self.labels) / len(self.data.train[1])


def tuned(data: Data, module: nn.Module, seconds: float, note: Callable[[str], None]) -> Loop:
    """Fine-tune a sub-network by itself; in evaluation mode after."""
    loop = Loop(module, data)
    loop.run(seconds, note)
    loop.graph = None
    loop.module.eval()
    return loop


def prepared(data: Data, supernet: bnas.SuperNetwork, subnet: Subnet) -> nn.Module:
    """The extracted sub-network with statistics from 2,000 training images."""
    module = supernet.extract(subnet)
    recalibrate(module, first_samples(data.loader(200), 8 if data.small else 2000))
    return module


def nearest(sizes: Sequence[int], wanted: float) -> int:
    """The size that is closest to what is wanted."""
    return min(sizes, key=lambda size: abs(size - wanted))


def alike(supernet: bnas.SuperNetwork, fewer: float) -> Subnet:
    """The largest sub-network with all widths at one fraction that has so many times fewer MACs.

    A fraction of 16 channels is rough: what is left below the bound goes to single widths, an entry each.
    """
    space = supernet.space
    limit = supernet.costs(space.maximal())["macs"] / fewer

    def fits(widths: Mapping[str, int]) -> bool:
        return supernet.costs(Subnet(widths, frozenset(), {}))["macs"] <= limit

    shares = (one / 256 for one in range(256, 0, -1))
    same = ({name: nearest(sizes, share * sizes[-1]) for name, sizes in space.widths.items()} for share in shares)
    widths = next(one for one in same if fits(one))
    for name, sizes in space.widths.items():
        larger = next((size for size in sizes if size > widths[name]), widths[name])
        widths |= {name: larger} if fits({**widths, name: larger}) else {}
    return Subnet(widths, frozenset(), {})


def rival(report: Report, data: Data, seconds: float, add: Callable[..., None], top1: float) -> None:
    """Prune once by L1, all widths alike, and fine-tune for `seconds`."""
    supernet = data.supernet(ALIKE)
    supernet.reorder("L1")
    for fewer in FEWER:
        start = time.perf_counter()
        subnet = alike(supernet, fewer)
        module = prepared(data, supernet, subnet)
        before = data.tested(module)
        loop = tuned(data, module, seconds - (time.perf_counter() - start), report.note)
        took, found = time.perf_counter() - start, data.tested(loop.module)
        add(
            "prune once, fine-tune", times(supernet, subnet), before, found, found - top1, loop.epochs, loop.steps, took
        )
        release()


def times(supernet: bnas.SuperNetwork, subnet: Subnet) -> float:
    """How many times fewer MACs."""
    return supernet.costs(supernet.space.maximal())["macs"] / supernet.costs(subnet)["macs"]


def ours(report: Report, data: Data, seconds: float, add: Callable[..., None], top1: float) -> None:
    """Train a super-network, search, and fine-tune the winners: all within `seconds` for each row."""
    whole, start = seconds * len(FEWER), time.perf_counter()
    supernet = data.supernet(OURS)
    steps = train(data, supernet, BEFORE * whole)
    trained = time.perf_counter() - start
    maximal = data.tested(prepared(data, supernet, supernet.space.maximal()))
    add("bnas: maximal, super-network trained", 1.0, maximal, maximal, maximal - top1, 0.0, steps, trained)
    winners = search(report, data, supernet, SEARCH * whole)
    spent = time.perf_counter() - start
    report.say(f"bnas: {trained:.0f} s for the super-network, {spent - trained:.0f} s for the search")
    for subnet in winners:
        module = prepared(data, supernet, subnet)
        before = data.tested(module)
        begun = time.perf_counter()
        loop = tuned(data, module, (whole - spent) / len(FEWER), report.note)
        took, found = time.perf_counter() - begun + spent / len(FEWER), data.tested(loop.module)
        add("bnas", times(supernet, subnet), before, found, found - top1, loop.epochs, loop.steps, took)
        release()


def train(data: Data, supernet: bnas.SuperNetwork, seconds: float) -> int:
    """Maximal and a random sub-network a step, which learn from the frozen original; as many steps as fit."""
    recipe = bnas.Recipe(
        distillation=bnas.Distillation("original", hard=1),
        precision="bfloat16" if data.train[1].is_cuda else "float32",
        memory_format="channels_last",
        weight_decay=5e-4,
        num_bn_adaptation_samples=0,
    )
    fused = partial(
        torch.optim.SGD, lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=data.train[1].is_cuda
    )

    def fit(one: bnas.SuperNetwork, steps: int, ends: list[float]) -> None:
        stage = bnas.Stage(init_lr=0.02, reorg_weights=True)
        note = lambda _: ends.append(time.perf_counter())  # noqa: E731
        bnas.Trainer(one, [stage], recipe, optimizer=fused, watch=0, on_step=note).fit(data.loader(256, steps))

    start, ends = time.perf_counter(), list[float]()
    fit(copy.deepcopy(supernet), 3 if data.small else 16, ends)
    each = (ends[-1] - ends[len(ends) // 2]) / (len(ends) - 1 - len(ends) // 2)
    steps = max(1, int((seconds - (time.perf_counter() - start)) / each))
    fit(supernet, steps, [])
    supernet.eval()
    return steps


def search(report: Report, data: Data, supernet: bnas.SuperNetwork, seconds: float) -> list[Subnet]:
    """The most accurate ones on held-out images below each bound."""
    count = 16 if data.small else 2000
    held = Images(*(one[:count] for one in data.held_out), 16 if data.small else 500, augment=False)
    evaluator = bnas.Evaluator(supernet, first_samples(data.loader(250), count // 4), list(held))
    full = supernet.costs(supernet.space.maximal())["macs"]
    start = time.perf_counter()
    evaluator.evaluate_many([supernet.space.sample(seed) for seed in range(3)])
    each = (time.perf_counter() - start) / 3
    number = 4 if data.small else max(20, min(150, int(seconds / each)))
    objectives = (bnas.Objective("accuracy", "max"), bnas.Objective("macs", "min"))
    constraints = (f"macs <= {full / FEWER[0]:.0f}",)
    settings = bnas.SearchSettings(
        algorithm=bnas.NSGA2(population=min(20, number)), num_evals=number, constraints=constraints
    )
    found = bnas.Searcher(supernet, evaluator, objectives, settings).run().feasible
    report.say(f"search: {number} evaluations of {1e3 * each:.0f} ms, {len(found)} within the bound")
    best = []
    for fewer in FEWER:
        below = [one for one in found if one.values["macs"] <= full / fewer]
        best.append(max(below, key=lambda one: one.values["accuracy"]).subnet if below else supernet.space.minimal())
    return best


def cifar(report: Report, clock: Clock, folder: Path | None, minutes: float, small: bool) -> None:
    """The table; both methods have half of the minutes, or of what is left."""
    if folder is None:
        return report.note("skipped: cifar: --data names the folder of images and weights")
    tf32(True)
    torch.manual_seed(0)
    data = Data.read(folder, clock.device, small)
    top1 = data.tested(data.original)
    report.say(f"\nResNet-56 before: {top1:.2f} % on {len(data.test.labels)} test images; {report.left:.0f} s left")
    seconds = min(60 * minutes, report.left - 20) / (2 * len(FEWER))
    if seconds < 5 and not small:
        return report.note(f"skipped: cifar: {report.left:.0f} s are left")
    title = f"CIFAR-10, ResNet-56, bfloat16: {seconds:.0f} s of wall clock for each row of each method"
    add = report.table("cifar", title, HEAD)
    report.tried("bnas on CIFAR-10", partial(ours, report, data, seconds, add, top1), 0)
    report.tried("prune once on CIFAR-10", partial(rival, report, data, seconds, add, top1), 0)
