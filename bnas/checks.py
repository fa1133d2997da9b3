"""What can be told of a configuration before its model and data are loaded."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from bnas.configuration import Configuration
from bnas.devices import device_named
from bnas.optimizers import settings_of
from bnas.runtime import Stage, TrainingError
from bnas.runtime.onnx_session import check_provider
from bnas.runtime.stage import check_stages
from bnas.search import Constraint, SearchError
from bnas.search_section import Search
from bnas.settings import elasticity_of, population_of, recipe_of
from bnas.sources import SourceError


def checks_of(configuration: Configuration, folder: Path) -> list[tuple[str, Callable[[], object]]]:
    """What can be told of `configuration` before its model and data are loaded: each raises BnasError, for a place."""
    training, search = configuration.bootstrapNAS.training, configuration.bootstrapNAS.search
    stages = training.schedule.list_stage_descriptions
    dimensions, order = training.elasticity.available_elasticity_dims, training.progressivity_of_elasticity
    checks: list[tuple[str, Callable[[], object]]] = [
        ("model_options", partial(_check_options, configuration)),
        ("device", partial(device_named, configuration.device)),
        ("optimizer", partial(settings_of, configuration.optimizer)),
        ("bootstrapNAS.training.elasticity", partial(elasticity_of, configuration, folder)),
        ("bootstrapNAS.training", partial(recipe_of, configuration)),
        ("bootstrapNAS.search", partial(_check_search, search)),
        ("latency.provider", partial(check_provider, configuration.latency.provider)),
        ("tensorboard", partial(_check_tensorboard, configuration.tensorboard)),
    ]
    for number, stage in enumerate(stages):
        place = f"bootstrapNAS.training.schedule.list_stage_descriptions[{number}]"
        checks.append((place, partial(Stage, **stage.model_dump())))
    dims = [Stage(one.train_dims) for one in stages]
    checks.append(("bootstrapNAS.training.schedule", partial(check_stages, dims, dimensions, order)))
    for number, text in enumerate(search.constraints):
        checks.append((f"bootstrapNAS.search.constraints[{number}]", partial(Constraint.parse, text)))
    return checks


def _check_options(configuration: Configuration) -> None:
    if configuration.num_classes is not None and "num_classes" in configuration.model_options:
        raise SourceError("num_classes is a key of the first level too; give one of them")


def _check_search(search: Search) -> None:
    if population_of(search) > search.num_evals:
        told = f"population {search.population} is larger than num_evals {search.num_evals}"
        raise SearchError(
            f"{told}: say --set bootstrapNAS.search.population={min(20, search.num_evals)}, or evaluate more"
        )
    if search.predictor and find_spec("sklearn") is None:
        raise SearchError("predictor: scikit-learn is not installed: pip install 'bnas[surrogate]'")


def _check_tensorboard(wanted: bool) -> None:
    if wanted and find_spec("tensorboard") is None:
        raise TrainingError("TensorBoard is not installed: pip install 'bnas[tensorboard]'")
