"""A super-network in PyTorch Lightning: the LightningModule asks bnas what each step trains, Lightning does the rest.

    python examples/lightning_training.py

`bnas.Schedule` names the sub-networks of a step and sets the learning rate, so the optimization is *manual*, in
Lightning's word: `manual_backward` once for each sub-network, then one step of the optimizer. Precision, accelerator,
loggers, callbacks and checkpoints are those of `lightning.Trainer`. The schedule is saved in Lightning's checkpoint, so
that `ckpt_path` resumes it.

Needs Lightning and scikit-learn (`pip install lightning 'bnas[demo]'`). About a minute of one core.
"""

from __future__ import annotations

import argparse
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor

import bnas
from bnas.data.digits import DigitNet, splits


class Shrinking(lightning.LightningModule):
    """Trains a super-network by the sandwich rule."""

    def __init__(self, supernet: bnas.SuperNetwork, stages: list[bnas.Stage], steps_per_epoch: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.supernet = supernet
        self.optimizer = torch.optim.AdamW(supernet.parameters(), lr=2e-3, weight_decay=0.05)
        told: Any = {"steps_per_epoch": steps_per_epoch, "optimizer": self.optimizer}
        self.schedule = bnas.Schedule(supernet, stages, bnas.Recipe(rule="sandwich"), **told)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        images, labels = batch
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        losses = []
        for subnet in self.schedule.step():
            loss = F.cross_entropy(self.supernet.program(subnet)(images), labels)
            self.manual_backward(loss)
            losses.append(loss.detach())
        self.clip_gradients(optimizer, 5.0, "norm")
        optimizer.step()
        self.log("loss of the maximal sub-network", losses[0], prog_bar=True)
        self.log("loss of the minimal sub-network", losses[1])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["schedule"] = self.schedule.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.schedule.load_state_dict(checkpoint["schedule"])


def train(
    supernet: bnas.SuperNetwork, data: bnas.Splits, epochs: int, resume: str | None = None, **options: Any
) -> lightning.Trainer:
    """Train for all epochs of the schedule, or for `max_epochs` of them; `resume` is a checkpoint."""
    stages = [bnas.Stage(("depth",), epochs=epochs // 3 or 1), bnas.Stage(("depth", "width"), epochs=epochs)]
    shrinking = Shrinking(supernet, stages, len(data.train))
    settings: Any = {"max_epochs": shrinking.schedule.epochs, "accelerator": "cpu", **options}
    trainer = lightning.Trainer(**settings, logger=False, enable_model_summary=False)
    trainer.fit(shrinking, data.train, ckpt_path=resume)
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=9, help="of the second stage; the first has a third of them")
    settings = parser.parse_args()
    torch.manual_seed(0)
    data = splits()
    supernet = bnas.SuperNetwork.from_model(DigitNet(), torch.zeros(1, 1, 8, 8))
    named = {"maximal": supernet.space.maximal(), "minimal": supernet.space.minimal()}
    evaluator = bnas.Evaluator(supernet, list(data.train), data.test)

    before = evaluator.evaluate_many(list(named.values()))
    train(supernet, data, settings.epochs, enable_checkpointing=False, enable_progress_bar=False)
    supernet.eval()
    after = evaluator.evaluate_many(list(named.values()))

    print("sub-network  M MACs  accuracy before  after")
    for name, first, then in zip(named, before, after, strict=True):
        print(f"{name:11}  {then['macs'] / 1e6:6.2f}  {first['accuracy']:15.2%}  {then['accuracy']:6.2%}")


if __name__ == "__main__":
    main()
