"""A vision transformer whose attention heads are elastic, one by one: how many does each layer need?

    python examples/vit_heads.py

torchvision's VisionTransformer, small: 4 x 4 patches of scikit-learn's digits, 3 layers of 6 heads. The settings of the
search space say which widths change, and how: any number of heads in each layer, half or three quarters of each MLP,
whole attention or MLP blocks skipped. Everything else stays as it is. The loss against MACs is looked for, and the
table says what each layer of the winner keeps.

Needs scikit-learn (`pip install 'bnas[demo]'`). About a minute of one core.
"""

from __future__ import annotations

import argparse

import torch
from torch import nn
from torchvision.models import VisionTransformer

import bnas
from bnas.digits import splits

LAYERS, HEADS, HIDDEN, MLP = 3, 6, 48, 96
ELASTIC = {
    "dimensions": ["depth", "width"],
    "widths": {"*.self_attention": range(1, HEADS + 1), "*.mlp.0": [MLP // 2, 3 * MLP // 4]},
    "pin": ["conv_proj"],  # the embedding, whose width all layers share
}


def transformer() -> VisionTransformer:
    model = VisionTransformer(8, 2, LAYERS, HEADS, HIDDEN, MLP, num_classes=10)
    model.conv_proj = nn.Conv2d(1, HIDDEN, 2, 2)  # grey images
    return model


def kept(subnet: bnas.Subnet, layer: int) -> tuple[int, int]:
    """Heads and hidden units of a layer; 0 where the block is skipped."""
    name = f"encoder.layers.encoder_layer_{layer}"
    heads, units = subnet.widths[f"{name}.self_attention"], subnet.widths[f"{name}.mlp.0"]
    return heads * (f"{name}#1" not in subnet.skipped), units * (f"{name}#2" not in subnet.skipped)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30, help="of the pre-training, and of the super-network")
    parser.add_argument("--evals", type=int, default=100, help="evaluations of the search, 4 at least")
    settings = parser.parse_args()
    torch.manual_seed(0)
    data, example = splits(), torch.zeros(1, 1, 8, 8)
    adam = {"optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=2e-3)}
    model = bnas.fine_tune(transformer(), example, data.train, epochs=settings.epochs, **adam)

    supernet = bnas.SuperNetwork.from_model(model, example, ELASTIC)
    stage = bnas.Stage(epochs=settings.epochs, reorg_weights=True)
    bnas.Trainer(supernet, [stage], **adam).fit(data.train)

    evaluator = bnas.Evaluator(supernet, None, data.validation)  # no BatchNorm, so nothing to calibrate
    objectives = [bnas.Objective("accuracy", "max"), bnas.Objective("macs", "min")]
    searcher = bnas.Searcher(
        supernet, evaluator, objectives, population=min(20, settings.evals), num_evals=settings.evals
    )
    whole = evaluator.evaluate(supernet.space.maximal())
    winner = searcher.run().winners(whole["accuracy"], delta=0.01)["smallest"]

    print("layer  heads  MLP units")
    for layer in range(LAYERS):
        heads, units = kept(winner.subnet, layer)
        print(f"{layer:5}  {heads:2}/{HEADS}  {units:6}/{MLP}")
    test = bnas.Evaluator(supernet, None, data.test)
    print("\nnetwork  test accuracy  M MACs")
    for name, subnet in (("whole", supernet.space.maximal()), ("winner", winner.subnet)):
        found = test.evaluate(subnet)
        print(f"{name:7}  {found['accuracy']:13.2%}  {found['macs'] / 1e6:6.3f}")


if __name__ == "__main__":
    main()
