"""What two processes do, started by torchrun: ``parallel_cases.py FOLDER``; each writes what it found there."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor
from training_cases import batches, gradients, plain, supernet, tensors

from bnas.runtime import Stage, Trainer, TrainingError
from bnas.runtime.evaluate.evaluation import Batch
from bnas.runtime.train import parallel
from bnas.runtime.train.learner import Learner, Moment

STAGES = (Stage(("depth",)), Stage(reorg_weights=True))
RECIPE = plain(sampling="attentive", rule="sandwich", clip_norm=1.0, ema_decay=0.5)


class Half:
    """Half of each of three batches, for one of two processes; it may fail after some, as an interrupted one does."""

    def __init__(self, rank: int, fail_after: int | None = None) -> None:
        self.rank, self.left = rank, fail_after

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[Batch]:
        for x, y in batches(3):
            if self.left == 0:
                raise InterruptedError
            self.left = None if self.left is None else self.left - 1
            yield x[self.rank * 4 :][:4], y[self.rank * 4 :][:4]


def step_gradients(rank: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Those of this process alone, and averaged."""
    net = supernet(norm=False).train()
    subnets = [net.space.maximal(), net.space.minimal()]
    Learner(net, plain()).accumulate(subnets, [next(iter(Half(rank)))], Moment())
    alone = gradients(net)
    parallel.BUCKET = 50  # several travel
    parallel.average_gradients(net.parameters())
    return alone, gradients(net)


def fitted(rank: int, folder: Path | None, fail_after: int | None = None) -> dict[str, Tensor]:
    """Other weights on each rank at the start: those of process 0 are taken."""
    net = supernet(seed=rank, norm=False)
    told: list[int] = []
    every = None if folder is None else 2
    trainer = Trainer(
        net, STAGES, RECIPE, directory=folder, checkpoint_every=every, on_step=lambda p: told.append(p.step)
    )
    try:
        trainer.fit(Half(rank, fail_after), batches(1, seed=5), resume=folder is not None)
    except InterruptedError:
        assert fail_after is not None
    assert bool(told) == (rank == 0)
    return tensors(net)


def main(folder: Path) -> None:
    """Write ``NAME-RANK.safetensors`` and the errors of this rank."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = parallel.rank()
    alone, averaged = step_gradients(rank)
    found = {"alone": alone, "averaged": averaged, "fitted": fitted(rank, None)}
    fitted(rank, folder / "run", 4)
    found["resumed"] = fitted(rank, folder / "run")
    errors = []
    for options in ({"learning_rate": 0.1 + rank}, {"train_steps": 4 + 4 * rank}):
        try:
            Trainer(supernet(), STAGES, plain(**options)).fit(Half(rank))
        except TrainingError as error:
            errors.append(str(error))
    (folder / f"errors-{rank}.json").write_text(json.dumps(errors))
    for name, values in found.items():
        safetensors.torch.save_file(values, folder / f"{name}-{rank}.safetensors")
    dist.destroy_process_group()
    (folder / f"threads-{rank}.json").write_text(json.dumps(threads()))


def threads() -> list[str]:
    """The names of those of this process, as Linux knows them."""
    return [task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").glob("*")]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
