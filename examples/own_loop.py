"""A training loop of your own: your optimizer, your augmentation, your loss; bnas only says what each step trains.

    python examples/own_loop.py

`bnas.Schedule` names the sub-networks of a step and sets the learning rate; `SuperNetwork.program` gives a module for
each, on the shared weights: forward, backward, done. Here it is AdamW, mixup (Zhang et al. 2018) with a loss for both
labels, and a norm of the gradients that is written down. The weights are random at first: no teacher is needed.

Needs scikit-learn (`pip install 'bnas[demo]'`). About a minute of one core.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import bnas
from bnas.data.digits import DigitNet, splits


def mixed(images: Tensor, labels: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Each image blended with another one, and the probabilities of the classes that it then shows."""
    order = torch.randperm(len(images))
    targets = F.one_hot(labels, 10).float()
    return images.lerp(images[order], share), targets.lerp(targets[order], share)


def train(supernet: bnas.SuperNetwork, data: bnas.Splits, epochs: int) -> None:
    stages = [bnas.Stage(("depth",), epochs=epochs // 3 or 1), bnas.Stage(("depth", "width"), epochs=epochs)]
    optimizer = torch.optim.AdamW(supernet.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = bnas.Schedule(
        supernet, stages, bnas.Recipe(rule="sandwich"), steps_per_epoch=len(data.train), optimizer=optimizer
    )
    supernet.train()
    for epoch in range(schedule.epochs):
        norms = []
        for images, labels in data.train:
            images, targets = mixed(images, labels, share=float(torch.rand(())) / 2)
            for subnet in schedule.step():
                F.cross_entropy(supernet.program(subnet)(images), targets).backward()
            norms.append(float(torch.nn.utils.clip_grad_norm_(supernet.parameters(), 5.0)))
            optimizer.step()
            optimizer.zero_grad()
        print(f"epoch {epoch}: gradients of norm {np.median(norms):.2f}")
    supernet.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=9, help="of the second stage; the first has a third of them")
    settings = parser.parse_args()
    torch.manual_seed(0)
    data = splits()
    supernet = bnas.SuperNetwork.from_model(DigitNet(), torch.zeros(1, 1, 8, 8))
    space, generator = supernet.space, np.random.default_rng(0)
    named = {"maximal": space.maximal(), "minimal": space.minimal(), "random": space.sample(generator)}
    evaluator = bnas.Evaluator(supernet, list(data.train), data.test)

    before = evaluator.evaluate_many(list(named.values()))
    train(supernet, data, settings.epochs)
    after = evaluator.evaluate_many(list(named.values()))

    print("sub-network  M MACs  accuracy before  after")
    for name, first, then in zip(named, before, after, strict=True):
        print(f"{name:11}  {then['macs'] / 1e6:6.2f}  {first['accuracy']:15.2%}  {then['accuracy']:6.2%}")


if __name__ == "__main__":
    main()
