"""The search of a job: what is searched, by what, who is told, and the sub-networks that it hands back."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bnas.passes import SearchSpace
from bnas.passes.errors import add_note
from bnas.runtime import Evaluator, LatencyError, LatencyModel, SuperNetwork
from bnas.runtime.storage.files import there, write_json
from bnas.search import Constraint, Evaluation, Searcher, SearchResult
from bnas.search.scalars import SearchScalars

from .job import Job, Watch
from .mark import OutputError
from .output import Output, read_json

# The sub-networks that a search hands back, by name, and their file in the folder of a run.

FORMAT = 1

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def check_name(name: object, place: str) -> str:
    """`name`, which becomes part of the names of files.

    Raises:
        OutputError: It has other characters than letters, digits, ``-`` and ``_``.
    """
    if isinstance(name, str) and _NAME.fullmatch(name):
        return name
    raise OutputError(f"{place}: {name!r} is no name for a file: letters, digits, '-' and '_' are allowed")


@dataclass(frozen=True)
class Winners:
    """What was found, and what it was held against."""

    found: Mapping[str, Evaluation]
    """By the names of `SearchResult.winners`; "smallest" is "best" where no accuracy is within the bound."""
    reference: float
    """The accuracy that they are held against, on the validation data."""
    acc_delta: float
    """How much less they may have."""
    evaluations: int
    missed: bool
    """None is within the bound."""

    @classmethod
    def of(cls, result: SearchResult, reference: float, delta: float) -> Winners:
        """The winners of a search."""
        found = result.winners(delta, reference=reference)
        missed = "smallest" not in found or found["best"].values["accuracy"] < reference - delta
        named = {"best": found["best"], "smallest": found.get("smallest", found["best"])}
        return cls(named, reference, delta, len(result.evaluations), missed)

    def write(self, path: Path) -> None:
        """Write a JSON file, atomically."""
        found = {name: evaluation.to_json() for name, evaluation in self.found.items()}
        settings = {"reference": self.reference, "acc_delta": self.acc_delta, "evaluations": self.evaluations}
        write_json(path, {"format": FORMAT, "winners": found, **settings, "missed": self.missed})

    @classmethod
    def read(cls, path: Path) -> Winners:
        """What `write` wrote.

        Raises:
            OutputError: the file is damaged, or of another format, or a winner has a name that no file can have.
        """
        data: Any = read_json(path)
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise OutputError(f"{path} has another format than {FORMAT}, the one that this version of bnas reads")
        try:
            found = {check_name(name, str(path)): Evaluation.from_json(one) for name, one in data["winners"].items()}
            return cls(found, data["reference"], data["acc_delta"], data["evaluations"], data["missed"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise OutputError(f"{path} is damaged: {type(error).__name__}: {error}") from error


# The search of a job: what is searched, by what, and who is told.


@dataclass(frozen=True)
class SearchPlan:
    """The search that `job` asks for, on its super-network and in the folder of its run."""

    job: Job
    output: Output
    watch: Watch
    supernet: SuperNetwork

    def searcher(self, evaluator: Evaluator, latency: Callable[..., float] | None, **told: Any) -> Searcher:
        """What searches: values are those of `evaluator`, and of `latency` where a latency model is needed.

        Raises:
            BnasError: as `bnas.Searcher`.
        """
        job = self.job
        given = job.search.latency or (latency if self._wants_latency else None)
        settings = replace(job.search, space=self.space, latency=given)
        return Searcher(self.supernet, evaluator, job.objectives, settings, **told)

    @property
    def space(self) -> SearchSpace:
        """What is searched: that of the last stage."""
        return self.job.stages[-1].space(self.supernet.space)

    @property
    def constraints(self) -> Sequence[Constraint | str]:
        """The bounds that are asked for."""
        return self.job.search.constraints

    @property
    def evaluations(self) -> int:
        """How many there will be."""
        return min(self.job.search.num_evals, self.space.size)

    @contextmanager
    def told(self) -> Iterator[Callable[[Evaluation], None]]:
        """What to call after each evaluation."""
        total = self.evaluations
        scalars = None
        if self.job.tensorboard:
            folder = self.output.path("search/tensorboard")
            scalars = SearchScalars(folder, self.job.objectives, self.constraints)

        def tell(evaluation: Evaluation) -> None:
            self.watch.on_evaluation(evaluation, total)
            if scalars is not None:
                scalars.add(evaluation)

        try:
            yield tell
        finally:
            if scalars is not None:
                scalars.close()

    @property
    def _wants_latency(self) -> bool:
        """A latency model is needed: something asks for latency, and nothing else gives it."""
        bounds = map(Constraint.of, self.constraints)
        asked = {*(one.name for one in self.job.objectives if one.measure is None), *(bound.name for bound in bounds)}
        return "latency" in asked and self.job.search.latency is None

    def latency(self) -> LatencyModel | None:
        """The latency model where one is needed: that of the folder, whose predictions the log has.

        Raises:
            LatencyError: as `bnas.LatencyModel.load` and `bnas.LatencyModel.fit`.
        """
        if not self._wants_latency:
            return None
        path = self.output.path("latency.json")
        if there(path):
            try:
                return LatencyModel.load(self.output.ledger.check("latency.json"), self.supernet)
            except LatencyError as error:
                add_note(error, f"`bnas search {self.output.folder} --overwrite` fits one here, and searches anew")
                raise
        model = LatencyModel.fit(self.supernet, self.job.latency)
        model.save(path)
        return model
