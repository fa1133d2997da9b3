"""The keys of the search: ``bootstrapNAS.search``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from bnas.section import BatchNormAdaptation, Section, Whole


class ObjectiveSection(Section):
    """An entry of ``objectives``; see `bnas.Objective`."""

    name: Annotated[str, Field(min_length=1)]
    """Such as accuracy, macs, parameters, activations, peak_memory or latency."""
    direction: Literal["min", "max"]
    """Which is better."""


class Search(Section):
    """``bootstrapNAS.search``."""

    algorithm: Literal["NSGA2", "RNSGA2", "random"] = "NSGA2"
    """How candidates are made."""
    num_evals: Annotated[int, Field(ge=4)] = 150
    """How many sub-networks are evaluated."""
    population: Annotated[int, Field(ge=4)] | None = None
    """Candidates of a generation; by default 20, or `num_evals` where that is less."""
    seed: Whole = 0
    """Fixes the training's sub-networks and the search."""
    acc_delta: Annotated[float, Field(ge=0)] = 1.0
    """How much a winner may lose, in points of accuracy."""
    ref_acc: Annotated[float, Field(gt=0, le=100)] | None = None
    """What winners are held against, in percent; by default the accuracy of the original."""
    batchnorm_adaptation: BatchNormAdaptation = BatchNormAdaptation()
    crossover_prob: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Probability that two candidates are mixed."""
    crossover_eta: Annotated[float, Field(ge=0)] = 10.0
    """The larger, the closer are children to their parents."""
    mutation_prob: Annotated[float, Field(ge=0, le=1)] | None = None
    """Probability that a choice changes; by default one choice of each candidate does on average."""
    mutation_eta: Annotated[float, Field(ge=0)] = 3.0
    """The larger, the smaller are changes."""
    aspiration_points: Annotated[tuple[tuple[float, float], ...], Field(min_length=1)] | None = Field(
        default=None, validate_default=True
    )
    """For RNSGA2, as BootstrapNAS has them: [MACs in millions, minus accuracy in percent]."""
    epsilon: Annotated[float, Field(ge=0)] = 0.001
    """For RNSGA2: how close to each other solutions around a point may be."""
    weights: tuple[float, float] | None = None
    """For RNSGA2: of MACs and accuracy."""
    extreme_points_as_ref_points: bool = False
    """For RNSGA2: also look around the best values of each objective."""
    objectives: Annotated[tuple[ObjectiveSection, ...], Field(min_length=1)] | None = None
    """What is searched for; accuracy must be one. By default the most accuracy and the fewest MACs."""
    constraints: tuple[str, ...] = ()
    """Such as "parameters <= 60 %"; see `bnas.search.Constraint`."""
    predictor: bool = False
    """Predict values, and evaluate only what is promising; needs scikit-learn."""

    @field_validator("aspiration_points")
    @classmethod
    def _of_rnsga2(cls, points: Any, known: ValidationInfo) -> Any:
        if "algorithm" in known.data and (known.data["algorithm"] == "RNSGA2") != (points is not None):
            raise ValueError("aspiration_points belong to the algorithm 'RNSGA2', which needs them")
        return points

    @field_validator("objectives")
    @classmethod
    def _of_winners(cls, objectives: Any, known: ValidationInfo) -> Any:
        names = [one.name for one in objectives or ()]
        if objectives is not None and "accuracy" not in names:
            raise ValueError("'accuracy' must be one of them, winners are chosen by it")
        if len(set(names)) < len(names):
            raise ValueError(f"a name stands twice in {', '.join(names)}")
        if objectives is not None and known.data.get("aspiration_points") is not None:
            raise ValueError("aspiration_points are of accuracy and MACs; leave objectives out")
        return objectives
