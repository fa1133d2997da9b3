"""A first configuration file for a model and its data, with a comment for each key; `bnas init` writes it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from bnas.data.guess import Guess
from bnas.data.inputs import Input
from bnas.passes.wording import shown

HEAD = """\
# Configuration of a bnas run, written by `{command}`.
# {start}: `bnas run {file}`.
# It prints a plan with times first; Ctrl-C stops it at any time.
# A line such as `#budget: "30m"` shows a key that is not set: remove the # to set it.
# File names are relative to this file. docs/configuration.md explains all keys; `bnas schema` helps your editor.
"""
SEARCHED = """
# --- What to look for ---
# Each target names a winner: the most accurate sub-network within its bound. A bound limits macs, parameters,
# activations, peak_memory or latency: in percent of the original, or absolute, such as "latency <= 2 ms".
targets:
  half: "macs <= 50 %"
  #quick: "latency <= 40 %"
# Instead of targets: how much accuracy a winner may lose, as a fraction (0.01 is one point).
#acc_delta: 0.01

# --- How long it takes ---
# Either give a time for the whole run, and bnas plans epochs and evaluations itself:
#budget: "30m"
# or give these numbers. First bnas trains the super-network, stage after stage.
stages:
  - epochs: 5
    #reorg_weights: true
# Then it evaluates sub-networks on the validation data, at most num_evals.
search:
  num_evals: 60
  #seed: 0
  #constraints: ["parameters <= 80 %"]
# Last it fine-tunes the winners, which recovers most of the lost accuracy.
fine_tune:
  epochs: 5
  #learning_rate: 0.01
  #order: "shared"
"""
MEASURED = """
# --- What may change in the model ---
# `bnas inspect` shows what can change. `pin` names layers that must not change, such as "head.*".
elasticity:
  min_width: 8
  #width_multipliers: [1, 0.75, 0.5, 0.25]
  #pin: []
  #ignored_scopes: []
  #dimensions: ["depth", "width", "kernel"]

# --- Where it runs, and how latency is measured ---
# cpu, cuda, cuda:1, mps or another device of PyTorch.
device: "{device}"
latency:
  threads: 1
  #batch: 1
  #runs: 50
  # Instead of ONNX Runtime: openvino, executorch, litert, or your own program.
  #target: "onnxruntime"
# Also write an int8 file for each ONNX file.
export:
  int8: true

# --- Results ---
# The folder of the run; `bnas run --output DIR` overrides it.
log_dir: "{folder}"
# Follow the run in TensorBoard, MLflow or Weights & Biases.
#tensorboard: true
#mlflow: {{experiment: "bnas"}}
#wandb: {{project: "bnas", mode: "offline"}}
"""
ADAM, SGD = ("adamw", 0.0001), ("sgd", 0.01)
"""Optimizer and learning rate for models with LayerNorm, and for others."""
CLIP_NORM = 10.0
"""Largest norm of gradients: above that of most classifiers, and below that of losses in pixels or in dollars."""


@dataclass(frozen=True)
class Proposal:
    """The content of a first configuration."""

    model: str
    found: Guess
    data: str | None = None
    """None if the user named no data; then the file has no such key."""
    dataset: bool = False
    """Whether the data are built in."""
    data_options: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    num_classes: int | None = None
    """Argument of the model's factory, if it is needed."""
    attention: bool = False
    """Whether to train the model like a transformer."""
    classifies: bool = True
    """Whether cross-entropy and accuracy fit the model and its data."""
    device: str = "cpu"
    command: str = "bnas init"
    file: str = "bnas.yaml"
    folder: str = "runs/mine"

    def text(self) -> str:
        """The file, in YAML."""
        ready = self.classifies and self.data is not None
        start = "You can run it unchanged" if ready else "Set what is REQUIRED below, then run it"
        head = HEAD.format(command=shown(self.command), file=shown(self.file), start=start)
        rest = MEASURED.format(device=self.device, folder=self.folder)
        parts = (
            self._model(),
            self._data(),
            self._inputs(),
            self._task(),
            SEARCHED.splitlines(),
            self._recipe(),
            rest.splitlines(),
        )
        return head + "\n".join(line for part in parts for line in part) + "\n"

    def _model(self) -> Iterator[str]:
        yield "\n# --- Model ---"
        yield "# torchvision:NAME, package.module:FACTORY, file.py:FACTORY or file.pt2."
        yield f"model: {json.dumps(self.model)}"
        yield "# Trained weights: a .safetensors or .pt file of tensors. Default: the weights that the factory gives."
        yield _key("weights", self.weights, "net.safetensors")
        yield "# Arguments of the factory."
        yield _key("num_classes", self.num_classes, self.found.outputs or 10)
        yield "#model_options: {}"

    def _data(self) -> Iterator[str]:
        yield "\n# --- Data ---"
        yield "# A folder of images by class, a .npz file, or a factory of bnas.Splits: file.py:FACTORY."
        yield from ["# REQUIRED: set your data here; bnas init was called without --data."] if self.data is None else []
        yield _key("dataset" if self.dataset else "data", self.data, "images")
        yield "# Arguments of the factory; for a folder: size, validation, test, augment, workers, seed."
        yield _key("data_options", self.data_options or None, {})
        yield "#batch_size: 64"

    def _inputs(self) -> Iterator[str]:
        yield "\n# --- Inputs of the model ---"
        yield f"# {'Sure' if self.found.sure else 'A guess'}: {self.found.why}."
        one, *others = self.found.inputs
        yield "input_info:"
        if not others:
            yield from (f"  {line}" for line in _input(one))
            return
        for entry in (one, *others):
            first, *rest = _input(entry)
            yield f"  - {first}"
            yield from (f"    {line}" for line in rest)

    def _task(self) -> Iterator[str]:
        yield "\n# --- Loss and metric ---"
        yield "# By default cross-entropy and top-1 accuracy. Your own functions: docs/howto/loss_and_metric.md."
        if not self.classifies:
            yield "# REQUIRED: set both here; cross-entropy and accuracy do not fit the outputs and targets."
        yield '#criterion: "task.py:loss"'
        yield '#metric: {function: "task.py:metric", direction: "max"}'

    def _recipe(self) -> Iterator[str]:
        optimizer, rate = ADAM if self.attention else SGD
        yield "# How sub-networks are trained. They learn from the largest one; winners also learn from the original."
        if self.attention:
            yield "# A guess: the model has LayerNorm and no BatchNorm, so it is treated as a transformer."
        yield "recipe:"
        yield f"  optimizer: {json.dumps(optimizer)}"
        yield f"  learning_rate: {rate:g}"
        yield f"  clip_norm: {CLIP_NORM:g}  # limits the gradients, so that a loss of large scale does not diverge"
        yield from ('  #rule: "maximal"', "  #label_smoothing: 0.1", '  #precision: "float32"')


def _key(name: str, value: Any, example: Any) -> str:
    """Return a key with its value, or a comment with an example of it."""
    return f"#{name}: {json.dumps(example)}" if value is None else f"{name}: {json.dumps(value)}"


def _input(one: Input) -> Iterator[str]:
    yield f"sample_size: {json.dumps(list(one.shape))}"
    if one.name is not None:
        yield f"keyword: {json.dumps(one.name)}"
    yield _key("type", one.type, "float")
    if one.type is not None:
        ends = one.range and [int(end) if float(end).is_integer() else end for end in one.range]
        yield _key("range", ends, [0, 1])
    yield '#dynamic: {"0": "batch"}'


def is_like_a_transformer(model: nn.Module) -> bool:
    """Return whether a model has LayerNorm and no BatchNorm."""
    kinds = {type(module) for module in model.modules()}
    return nn.LayerNorm in kinds and not any(issubclass(kind, nn.modules.batchnorm._BatchNorm) for kind in kinds)
