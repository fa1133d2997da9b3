"""Table of what training costs on a GPU: ``python tests/benchmarks/gpu.py [MODEL ...]``.

Milliseconds on the wall clock of a training step (``zero_grad``, forward, backward, SGD) with random images, batch 256,
in bfloat16 autocast and in single precision; of programs on the shared parameters and of plain modules, which take
turns in one process. Medians with the quartiles. The last rows are the capture, on the GPU.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace

import torch
import torchvision
from timing import Spread
from torch import Tensor, nn
from torch.nn import functional as F

from bnas.runtime import SuperNetwork, verify

MODELS, BATCH, SIDE, ROUNDS = ("resnet50", "mobilenet_v2", "vit_b_16"), 256, 224, 15


def timed(run: Callable[[], object]) -> float:
    """Milliseconds until the GPU is done."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def step(module: nn.Module, owner: nn.Module, images: Tensor, targets: Tensor, half: bool) -> Callable[[], object]:
    """A training step of `module`, whose parameters `owner` has."""
    optimizer = torch.optim.SGD(owner.parameters(), lr=1e-6, momentum=0.9)

    def run() -> None:
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            loss = F.cross_entropy(module(images), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return run


def rows(name: str, half: bool) -> dict[str, Spread]:
    """The steps of one model, by what is trained."""
    model = torchvision.models.get_model(name, weights=None).cuda().train()
    images, targets = torch.randn(BATCH, 3, SIDE, SIDE, device="cuda"), torch.randint(1000, (BATCH,), device="cuda")
    supernet = SuperNetwork.from_model(model, images[:2]).train()
    plain = torchvision.models.get_model(name, weights=None).cuda().train()
    whole, least = supernet.space.maximal(), supernet.space.minimal()
    narrow = replace(whole, widths=least.widths)
    modules = {
        "the plain model": (plain, plain),
        "maximal program": (supernet.program(whole), supernet),
        "program, least widths": (supernet.program(narrow), supernet),
        "plain, least widths": ((small := supernet.extract(narrow).train()), small),
        "minimal program": (supernet.program(least), supernet),
        "plain, minimal": ((smallest := supernet.extract(least).train()), smallest),
    }
    steps = {what: step(*pair, images, targets, half) for what, pair in modules.items()}
    for run in [*steps.values()] * 3:
        run()
    times: dict[str, list[float]] = {what: [] for what in steps}
    for _ in range(ROUNDS):
        for what, run in steps.items():
            times[what].append(timed(run))
    return {what: Spread(found) for what, found in times.items()}


def capture(name: str) -> tuple[float, float]:
    """Seconds of `SuperNetwork.from_model` on the GPU, and the error of its minimal sub-network against the oracle."""
    model = torchvision.models.get_model(name, weights=None).cuda().eval()
    images = torch.randn(2, 3, SIDE, SIDE, device="cuda")
    SuperNetwork.from_model(model, images)
    seconds = timed(lambda: SuperNetwork.from_model(model, images)) / 1e3
    supernet = SuperNetwork.from_model(model, images)
    return seconds, verify(model, supernet, supernet.space.minimal(), images)


def main(names: list[str]) -> None:
    """Print the tables."""
    print(torch.cuda.get_device_name(), "PyTorch", torch.__version__)
    print("| model | what | bfloat16, ms | float32, ms |\n|---|---|---|---|")
    for name in names:
        found = [rows(name, half) for half in (True, False)]
        for what in found[0]:
            print(f"| {name} | {what} | {found[0][what].shown(1)} | {found[1][what].shown(1)} |", flush=True)
    print("| model | capture, s | error of the minimal sub-network |\n|---|---|---|")
    for name in names:
        print("| {} | {:.2f} | {:.1e} |".format(name, *capture(name)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or list(MODELS))
