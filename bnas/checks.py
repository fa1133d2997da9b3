"""What can be told of a configuration before its model and data are loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from bnas.configuration import Configuration
from bnas.devices import device_named
from bnas.runtime import TrainingError
from bnas.runtime.onnx_session import check_provider
from bnas.runtime.stage import check_stages
from bnas.search import SearchError, SearchSettings
from bnas.settings import elasticity_of, order_of, recipe_of, search_of, stages_of
from bnas.sources import SourceError


@dataclass(frozen=True)
class Check:
    """Something that can be wrong with a configuration."""

    place: str
    """Where it is told."""
    check: Callable[[], object]
    """Raises BnasError."""
    reads: tuple[str, ...]
    """The places that it is about: where one of these is wrong by itself, there is nothing to check."""


def checks_of(configuration: Configuration, folder: Path) -> list[Check]:
    """What can be told of `configuration` before its model and data are loaded."""

    def check(place: str, test: Callable[[], object], *reads: str) -> Check:
        return Check(place, test, reads or (place,))

    return [
        check("model_options", partial(_check_options, configuration), "model_options", "num_classes"),
        check("device", partial(device_named, configuration.device)),
        *(_of_peer if configuration.peer else _of_own)(configuration, folder),
        check("latency.provider", partial(check_provider, configuration.latency.provider)),
        check("tensorboard", partial(_check_tensorboard, configuration.tensorboard)),
    ]


def _of_peer(configuration: Configuration, folder: Path) -> list[Check]:
    training, search = "bootstrapNAS.training", "bootstrapNAS.search"
    elastic, schedule = f"{training}.elasticity", f"{training}.schedule"
    dims, order = f"{elastic}.available_elasticity_dims", f"{training}.progressivity_of_elasticity"
    scopes = ("ignored_scopes", "target_scopes")
    return [
        Check(elastic, partial(elasticity_of, configuration, folder), (elastic, *scopes)),
        Check(training, partial(_check_teacher, configuration), (f"{training}.rule", f"{training}.compression")),
        Check(schedule, partial(_check_stages, configuration), (schedule, dims, order)),
        Check(search, partial(_check_search, configuration), (search,)),
    ]


def _of_own(configuration: Configuration, folder: Path) -> list[Check]:
    dims, order = "elasticity.dimensions", "recipe.progressivity_of_elasticity"
    return [
        Check("stages", partial(_check_stages, configuration), ("stages", dims, order)),
        Check("search", partial(_check_search, configuration), ("search",)),
    ]


def _check_options(configuration: Configuration) -> None:
    if configuration.num_classes is not None and "num_classes" in configuration.model_options:
        raise SourceError("num_classes is a key of the first level too; give one of them")


def _check_teacher(configuration: Configuration) -> None:
    """Rule and teacher stand in two sections: all others are checked where they stand."""
    recipe_of(configuration)


def _check_stages(configuration: Configuration) -> None:
    dimensions = elasticity_of(configuration, Path()).dimensions
    check_stages(stages_of(configuration), dimensions, order_of(configuration))


def _check_search(configuration: Configuration) -> None:
    settings: SearchSettings = search_of(configuration)
    if getattr(settings.algorithm, "predictor", False) and find_spec("sklearn") is None:
        raise SearchError("predictor: scikit-learn is not installed: pip install 'bnas[surrogate]'")


def _check_tensorboard(wanted: bool) -> None:
    if wanted and find_spec("tensorboard") is None:
        raise TrainingError("TensorBoard is not installed: pip install 'bnas[tensorboard]'")
