"""A vision transformer whose attention heads are elastic, one by one: how many does each layer need?

    python examples/vit_heads.py

torchvision's VisionTransformer, small: 4 x 4 patches of scikit-learn's digits, 3 layers of 6 heads. The settings of the
search space say which widths change, and how: any number of heads in each layer, half or three quarters of each MLP,
whole attention or MLP blocks skipped. Everything else stays as it is. The most accurate sub-network with six tenths of
the MACs is looked for and trained by itself; the first table says what each of its layers keeps.

Needs scikit-learn (`pip install 'bnas[demo]'`). About a minute of one core.
"""

from __future__ import annotations

import argparse

import torch
from torch import nn
from torchvision.models import VisionTransformer

import bnas
from bnas.data.digits import splits
from bnas.runtime import accuracy

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
    parser.add_argument("--epochs", type=int, default=25, help="of each of the three trainings")
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
    searcher = bnas.Searcher(
        supernet,
        evaluator,
        [bnas.Objective("accuracy", "max"), bnas.Objective("macs", "min")],
        bnas.SearchSettings(num_evals=settings.evals, constraints=("macs <= 60 %",)),
    )
    winner = max(searcher.run().feasible, key=lambda one: one.values["accuracy"]).subnet
    small, whole = supernet.extract(winner), supernet.extract(supernet.space.maximal())
    tuned = bnas.fine_tune(small, example, data.train, epochs=settings.epochs, teacher=whole, **adam)

    print("layer  heads  MLP units")
    for layer in range(LAYERS):
        heads, units = kept(winner, layer)
        print(f"{layer:5}  {heads:2}/{HEADS}  {units:6}/{MLP}")
    print("\nnetwork  test accuracy  M MACs")
    for name, module in {"whole": whole, "winner": small, "tuned": tuned}.items():
        macs = supernet.costs(supernet.space.maximal() if module is whole else winner)["macs"]
        print(f"{name:7}  {accuracy(module, data.test):13.2%}  {macs / 1e6:6.3f}")


if __name__ == "__main__":
    main()
