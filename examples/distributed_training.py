"""Train one super-network on several processes, each with its part of the data.

    torchrun --standalone --nproc-per-node 2 examples/distributed_training.py

Every process makes the process group and a loader with a DistributedSampler, as for DistributedDataParallel, and calls
`Trainer.fit`. All train the same sub-networks, average their gradients once a step, and end with the same weights:
the table shows it. Process 0 writes the super-network, for `examples/distributed_search.py`.

On several machines start torchrun on each, with ``--nnodes`` and ``--rdzv-endpoint`` instead of ``--standalone``. On
GPUs say ``nccl`` instead of ``gloo``, and put model and example on the device of the process.

Needs scikit-learn (`pip install 'bnas[demo]'`). About half a minute of each of two cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import bnas
from bnas.data.digits import DigitNet


def digits() -> tuple[TensorDataset, TensorDataset]:
    """1,400 images to train on, and 397 that are held out."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 0.6
    labels = torch.tensor(data.target)
    return TensorDataset(images[:1400], labels[:1400]), TensorDataset(images[1400:], labels[1400:])


def evaluator(folder: str) -> bnas.Evaluator:
    """What measures sub-networks of the super-network in `folder`: each worker of a search makes one for itself."""
    torch.set_num_threads(1)
    train, held_out = digits()
    supernet = bnas.SuperNetwork.load(folder, DigitNet())
    return bnas.Evaluator(supernet, [train[:500]], [held_out[:]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/distributed"), help="gets the super-network")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=50, help="images of a step, of all processes together")
    settings = parser.parse_args()
    torch.manual_seed(0)
    dist.init_process_group("gloo")
    supernet = bnas.SuperNetwork.from_model(DigitNet(), torch.zeros(1, 1, 8, 8))  # the weights of process 0 count
    rank, processes = dist.get_rank(), dist.get_world_size()
    train, held_out = digits()
    sampler: DistributedSampler[Any] = DistributedSampler(train)
    loader = DataLoader(train, settings.batch // processes, sampler=sampler, drop_last=True)

    stages = [bnas.Stage(("depth",), epochs=settings.epochs // 2 or 1), bnas.Stage(epochs=settings.epochs)]
    recipe = bnas.Recipe(rule="sandwich", learning_rate=0.05)
    bnas.Trainer(supernet, stages, recipe).fit(loader, [held_out[:]])

    rows: list[Any] = [None] * processes
    dist.all_gather_object(rows, (len(sampler), len(loader), supernet.fingerprint()[:12]))
    if rank == 0:
        print("process  images  steps an epoch  weights")
        for process, (images, steps, weights) in enumerate(rows):
            print(f"{process:7}  {images:6}  {steps:14}  {weights}")
        supernet.save(settings.output)
        print(f"The super-network is in {settings.output}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
