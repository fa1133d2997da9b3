"""pymoo searches the super-network of the digits: ``python examples/search_with_pymoo.py --evals 60``."""

from __future__ import annotations

import argparse

import numpy as np
import torch
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.problem import ElementwiseProblem
from pymoo.operators.repair.rounding import RoundingRepair
from pymoo.operators.sampling.rnd import IntegerRandomSampling
from pymoo.optimize import minimize

import bnas
from bnas.data.digits import DigitNet, splits


class Digits(ElementwiseProblem):
    def __init__(self, evaluator: bnas.Evaluator) -> None:
        self.evaluator, self.space = evaluator, evaluator.supernet.space
        last = np.array([len(variable.choices) - 1 for variable in self.space.variables()])
        super().__init__(n_var=len(last), n_obj=2, xl=0, xu=last, vtype=int)

    def _evaluate(self, x: np.ndarray, out: dict, *_: object, **__: object) -> None:
        values = self.evaluator.evaluate(self.space.decode([int(gene) for gene in x]))
        out["F"] = [values["macs"], -values["accuracy"]]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--evals", type=int, default=60)
    data, evals = splits(), parser.parse_args().evals
    supernet = bnas.SuperNetwork.from_model(DigitNet().eval(), torch.zeros(1, 1, 8, 8))
    problem = Digits(bnas.Evaluator(supernet, list(data.train)[:4], data.validation))
    algorithm = NSGA2(pop_size=min(10, evals), sampling=IntegerRandomSampling(), repair=RoundingRepair())
    for macs, accuracy in sorted(minimize(problem, algorithm, ("n_eval", evals), seed=0).F.tolist()):
        print(f"{macs / 1e6:.3f} M MACs, accuracy {-accuracy:.3f}")
