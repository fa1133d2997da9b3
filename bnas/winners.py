"""The sub-networks that a search hands back, by name, and their file in the folder of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnas.output import OutputError, read_json
from bnas.runtime.files import write_json
from bnas.search import Evaluation, SearchResult

FORMAT = 1


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
            OutputError: the file is damaged, or of another format.
        """
        data: Any = read_json(path)
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise OutputError(f"{path} has another format than {FORMAT}, the one that this version of bnas reads")
        try:
            found = {name: Evaluation.from_json(one) for name, one in data["winners"].items()}
            return cls(found, data["reference"], data["acc_delta"], data["evaluations"], data["missed"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise OutputError(f"{path} is damaged: {type(error).__name__}: {error}") from error
