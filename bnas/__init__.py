"""bnas: any pre-trained PyTorch model as a weight-sharing super-network, searched and handed back small."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bnas.passes.lazy import attach

if TYPE_CHECKING:
    from bnas.config.file import load_config
    from bnas.passes import BnasError, Elasticity, SearchSpace, Subnet
    from bnas.run import Job, Splits, run_job
    from bnas.runtime import (
        Distillation,
        Evaluator,
        FineTune,
        Int8,
        LatencyModel,
        LatencySettings,
        Recipe,
        Schedule,
        Stage,
        SuperNetwork,
        Target,
        Trainer,
        evaluate_onnx,
        export_onnx,
        fine_tune,
        measure_latency,
        verify,
    )
    from bnas.search import (
        NSGA2,
        RNSGA2,
        Callback,
        Objective,
        RandomSearch,
        Searcher,
        SearchResult,
        SearchSettings,
        prune,
    )

    from . import loggers as loggers
    from . import passes as passes
    from . import run as run
    from . import runtime as runtime
    from . import search as search
    from . import testing as testing

_attribute, __dir__ = attach(
    __name__,
    {
        "bnas": (
            "loggers",
            "passes",
            "run",
            "runtime",
            "search",
            "testing",
        ),
        "bnas.config.file": ("load_config",),
        "bnas.passes": (
            "BnasError",
            "Elasticity",
            "SearchSpace",
            "Subnet",
        ),
        "bnas.run": (
            "Job",
            "Splits",
            "run_job",
        ),
        "bnas.runtime": (
            "Distillation",
            "Evaluator",
            "FineTune",
            "Int8",
            "LatencyModel",
            "LatencySettings",
            "Recipe",
            "Schedule",
            "Stage",
            "SuperNetwork",
            "Target",
            "Trainer",
            "evaluate_onnx",
            "export_onnx",
            "fine_tune",
            "measure_latency",
            "verify",
        ),
        "bnas.search": (
            "Callback",
            "NSGA2",
            "Objective",
            "RNSGA2",
            "RandomSearch",
            "SearchResult",
            "SearchSettings",
            "Searcher",
            "prune",
        ),
    },
)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("bnas")
    return _attribute(name)


__all__ = [
    "NSGA2",
    "RNSGA2",
    "BnasError",
    "Callback",
    "Distillation",
    "Elasticity",
    "Evaluator",
    "FineTune",
    "Int8",
    "Job",
    "LatencyModel",
    "LatencySettings",
    "Objective",
    "RandomSearch",
    "Recipe",
    "Schedule",
    "SearchResult",
    "SearchSettings",
    "SearchSpace",
    "Searcher",
    "Splits",
    "Stage",
    "Subnet",
    "SuperNetwork",
    "Target",
    "Trainer",
    "evaluate_onnx",
    "export_onnx",
    "fine_tune",
    "load_config",
    "measure_latency",
    "prune",
    "run_job",
    "verify",
]
