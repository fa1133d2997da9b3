# %% [markdown]
"""# Handwritten digits: smaller networks out of a trained one.

A small residual network is trained on scikit-learn's digits (1,797 real images, nothing is fetched). bnas finds what
can be left out of it, trains all of its sub-networks at once, searches them, and hands back plain PyTorch modules and
ONNX files.

`python examples/digits.py` runs it, and `examples/digits.ipynb` is the same as a notebook, also for Colab.
It takes about a minute of one core, and writes to `runs/digits`. The first cell installs bnas where it is missing;
before the first release, give the wheel instead of the name.
"""

# %%
# %pip install --quiet "bnas[demo]"

# %%
from pathlib import Path

import torch

import bnas
from bnas.data.digits import pretrain, splits

# %% tags=["parameters"]
epochs, evals = 6, 60  # of each training, and of the search

# %% [markdown]
"""## A trained network

This stands for yours: any `nn.Module` in evaluation mode. `splits` gives batches for training, for the search
(validation) and for the numbers at the end (test)."""

# %%
torch.manual_seed(0)
data, example = splits(), torch.zeros(1, 1, 8, 8)
model = pretrain(data, epochs, lambda epoch, loss: print(f"epoch {epoch}: loss {loss:.3f}"))

folder = Path("runs/digits")
folder.mkdir(parents=True, exist_ok=True)
bnas.export_onnx(model, folder / "original.onnx", example)  # now, since the training below goes on with its weights

# %% [markdown]
"""## What is elastic

A forward pass of the example is all that bnas needs: it sees which channels depend on each other, and which blocks can
be skipped."""

# %%
supernet = bnas.SuperNetwork.from_model(model, example)
space = supernet.space
print(f"{space.size:,} sub-networks: {len(space.blocks)} blocks can be skipped, {len(space.widths)} widths can change:")
print(dict(space.widths))

# %% [markdown]
"""## Training

Each step trains the whole network and a random part of it, which learns from the whole. First blocks are skipped, then
widths change too; before that the weights are reordered, so that a narrow layer keeps the important channels."""

# %%
stages = [bnas.Stage(("depth",), epochs=epochs // 2 or 1), bnas.Stage(("depth", "width"), epochs, reorg_weights=True)]
history = bnas.Trainer(supernet, stages).fit(data.train, data.validation)
print({name: round(metric, 3) for name, metric in history[-1].metrics.items()})

# %% [markdown]
"""## Search

Each candidate gets BatchNorm statistics of its own from training images and is measured on the validation images. The
front are those that no other one beats in both accuracy and MACs."""

# %%
evaluator = bnas.Evaluator(supernet, list(data.train), data.validation)
objectives = [bnas.Objective("accuracy", "max"), bnas.Objective("macs", "min")]
result = bnas.Searcher(supernet, evaluator, objectives, bnas.SearchSettings(num_evals=evals)).run()
for one in result.pareto():
    print(f"{one.values['macs'] / 1e6:6.2f} M MACs, accuracy {one.values['accuracy']:.2%}")

# %% [markdown]
"""## The winner

The smallest one that loses at most two points on the validation images, by itself for some more epochs. It learns from
the most accurate sub-network that was found. `verify` compares it with what the original model computes on the entries
that were kept."""

# %%
best = max(result.feasible, key=lambda one: one.values["accuracy"])
winner = result.winners(0.02, reference=best.values["accuracy"])["smallest"].subnet
print(winner.to_json())
bnas.verify(model, supernet, winner, torch.randn(4, 1, 8, 8))
teacher = evaluator.prepare(best.subnet)
tuned = bnas.fine_tune(evaluator.prepare(winner), example, data.train, epochs=epochs, teacher=teacher)

# %% [markdown]
"""## The result

ONNX files, checked against PyTorch when they are written, are measured as they are deployed: by ONNX Runtime, on test
images that neither training nor search saw."""

# %%
bnas.export_onnx(evaluator.prepare(winner), folder / "winner.onnx", example)
bnas.export_onnx(tuned, folder / "tuned.onnx", example)
files = {name: folder / f"{name}.onnx" for name in ("original", "winner", "tuned")}
subnets = {"original": space.maximal(), "winner": winner, "tuned": winner}
times = bnas.measure_latency(files, reference="original")
print("network   test accuracy  M MACs  CPU ms")
for name, path in files.items():
    accuracy, macs = bnas.evaluate_onnx(path, data.test), supernet.costs(subnets[name])["macs"]
    print(f"{name:8}  {accuracy:13.2%}  {macs / 1e6:6.2f}  {times[name].median_ms:6.3f}")
