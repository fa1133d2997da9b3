"""Runs from configurations: what the command line does, without the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bnas.configuration import Configuration
from bnas.output import Output
from bnas.passes import Elasticity
from bnas.pipeline import Job, Watch, run_job
from bnas.report import Report
from bnas.runtime import Stage
from bnas.sources import load_data, load_model


def run_configuration(configuration: Configuration, folder: Path, output: Output, watch: Watch | None = None) -> Report:
    """Run `configuration`, whose files are looked for in `folder`."""
    weights = Path(configuration.weights) if configuration.weights else None
    model = load_model(configuration.model, weights, folder)
    data = load_data(configuration.data, folder, **configuration.data_options)
    example = torch.zeros(configuration.input_info.sample_size)
    return run_job(Job(model, data, example, **_settings(configuration, folder)), output, watch)


def elasticity_of(configuration: Configuration, folder: Path) -> Elasticity:
    """The settings of the search space; scopes of the file's first level and of ``elasticity`` both count.

    Raises:
        ElasticityError: settings contradict each other.
    """
    section = configuration.bootstrapNAS.training.elasticity
    width = section.width.model_dump()
    if width["external_importance_path"] is not None:
        width["external_importance_path"] = str(folder / width["external_importance_path"])
    return Elasticity(
        dimensions=section.available_elasticity_dims,
        ignored_scopes=(*configuration.ignored_scopes, *section.ignored_scopes),
        target_scopes=(*configuration.target_scopes, *section.target_scopes),
        pin=section.pin,
        **width,
        **section.kernel.model_dump(),
        **section.depth.model_dump(),
    )


def _settings(configuration: Configuration, folder: Path) -> dict[str, Any]:
    training, search = configuration.bootstrapNAS.training, configuration.bootstrapNAS.search
    operators = search.model_dump(include={"crossover_prob", "crossover_eta", "mutation_prob", "mutation_eta"})
    return {
        "elasticity": elasticity_of(configuration, folder),
        "stages": [Stage(**stage.model_dump()) for stage in training.schedule.list_stage_descriptions],
        "training": {
            "teacher": training.teacher,
            "subnets_per_step": training.subnets_per_step,
            **configuration.optimizer.model_dump(exclude={"type"}),
        },
        "num_evals": search.num_evals,
        "population": search.population,
        "seed": search.seed,
        "acc_delta": search.acc_delta / 100,
        "reference": "original" if search.ref_acc is None else search.ref_acc / 100,
        "calibration_samples": search.batchnorm_adaptation.num_bn_adaptation_samples,
        "search": operators,
    }
