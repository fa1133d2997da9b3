"""Optuna searches the super-network of the digits: ``python examples/search_with_optuna.py --evals 60``."""

from __future__ import annotations

import argparse

import optuna
import torch

import bnas
from bnas.data.digits import DigitNet, splits


def main(evals: int) -> None:
    data = splits()
    supernet = bnas.SuperNetwork.from_model(DigitNet().eval(), torch.zeros(1, 1, 8, 8))
    evaluator = bnas.Evaluator(supernet, list(data.train)[:4], data.validation)
    variables = supernet.space.variables()

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        genes = [trial.suggest_int(f"{v.kind} {v.name}", 0, len(v.choices) - 1) for v in variables]
        values = evaluator.evaluate(supernet.space.decode(genes))
        return values["macs"], values["accuracy"]

    study = optuna.create_study(directions=["minimize", "maximize"], sampler=optuna.samplers.NSGAIISampler(seed=0))
    study.optimize(objective, n_trials=evals)
    for macs, accuracy in sorted(trial.values for trial in study.best_trials):
        print(f"{macs / 1e6:.3f} M MACs, accuracy {accuracy:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--evals", type=int, default=60)
    main(parser.parse_args().evals)
