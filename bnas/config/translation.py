"""Translate BootstrapNAS's sections into the settings of the API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bnas.passes import Elasticity
from bnas.passes.settings import Names
from bnas.runtime import CosineSchedule, Distillation, Recipe, Stage
from bnas.search import NSGA2, RNSGA2, RandomSearch, SearchSettings

from .bootstrapnas import OF_RNSGA2, POPULATION, VARIATION


def elasticity_of(section: Any, ignored: Names, target: Names, folder: Path) -> Elasticity:
    """Return the settings of the search space; scopes at the top level and in ``elasticity`` are combined.

    Raises:
        ElasticityError: settings contradict each other.
    """
    width: dict[str, Any] = dict(section.width)
    if width["external_importance_path"] is not None:
        width["external_importance_path"] = str(folder / width["external_importance_path"])
    return Elasticity(
        dimensions=section.available_elasticity_dims,
        ignored_scopes=(*ignored, *section.ignored_scopes),
        target_scopes=(*target, *section.target_scopes),
        pin=section.pin,
        **width,
        **dict(section.kernel),
        **dict(section.depth),
    )


def recipe_of(training: Any, optimizer: Any, seed: int) -> Recipe:
    """Return the settings of the training.

    Raises:
        TrainingError: settings contradict each other.
    """
    parameters, settings = training.lr_schedule.params, dict(optimizer)
    kept = {key: value for key, value in training if key in Recipe.__pydantic_fields__ and key != "lr_schedule"}  # type: ignore[attr-defined]
    if "compression" in training.model_fields_set:
        kept["distillation"] = _distillation(training)
    return Recipe(
        optimizer=settings.pop("type"),
        learning_rate=settings.pop("base_lr"),
        lr_schedule=None if parameters is None else CosineSchedule(**dict(parameters)),
        num_bn_adaptation_samples=training.batchnorm_adaptation.num_bn_adaptation_samples,
        seed=seed,
        **kept,
        **settings,
    )


def _distillation(training: Any) -> Distillation | None:
    given = training.compression
    return None if given is None else Distillation(**{key: value for key, value in given if key != "algorithm"})


def stages_of(training: Any) -> tuple[Stage, ...]:
    """The stages of the training."""
    return tuple(Stage(**dict(one)) for one in training.schedule.list_stage_descriptions)


def search_of(search: Any) -> SearchSettings:
    """Return the settings of the search."""
    given = {key: getattr(search, key) for key in ("num_evals", "seed", "constraints", "racing", "executor")}
    return SearchSettings(algorithm=_algorithm(search), **given)


def _algorithm(search: Any) -> NSGA2 | RNSGA2 | RandomSearch:
    population = search.population or min(POPULATION, search.num_evals)
    if search.algorithm == "random":
        return RandomSearch(population=population)
    settings = {key: getattr(search, key) for key in (*VARIATION, "predictor")} | {"population": population}
    if search.algorithm == "NSGA2":
        return NSGA2(**settings)
    settings |= {key: getattr(search, key) for key in OF_RNSGA2}
    # Theirs are [MACs in millions, minus accuracy in percent]; the first objective here is accuracy.
    points = [[abs(lost) / 100, 1e6 * macs] for macs, lost in search.aspiration_points]
    weights = None if search.weights is None else search.weights[::-1]
    return RNSGA2(aspiration_points=points, weights=weights, **settings)
