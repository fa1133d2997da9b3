"""The result of evaluating one sub-network (values, or the reason of a failure), and evaluations as a CSV table."""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnas.passes import Subnet
from bnas.passes.wording import amount
from bnas.runtime.storage.files import write_bytes

from .errors import MetricError, RecordError, SearchError, WorkerError
from .objectives import check_name, nearest

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from bnas.runtime.evaluate.together import Bar

    from .objectives import Objective


# The evaluation of one sub-network.


@dataclass(frozen=True)
class Evaluation:
    """An evaluated sub-network with its values (finite numbers by name), or the reason of the failure."""

    index: int
    """Position in its log or search, from 0."""
    subnet: Subnet
    values: Mapping[str, float] = field(hash=False)
    """Empty where the evaluation failed."""
    seconds: float = field(compare=False)
    """Duration of the evaluation; ignored when evaluations are compared."""
    failure: str | None = None
    """Why the evaluation failed; None if it did not."""

    def __repr__(self) -> str:
        """The values in few digits, or the failure, and the sub-network."""
        values = ", ".join(f"{name} {amount(value)}" for name, value in self.values.items())
        found = values if self.failure is None else f"failed with {self.failure}"
        return f"<Evaluation {self.index}: {found}; {self.subnet!r}>"

    def to_json(self) -> dict[str, Any]:
        """Return the evaluation as JSON values; `from_json` reads it back."""
        data = {"index": self.index, "subnet": self.subnet.to_json(), "seconds": self.seconds}
        return {**data, "values": dict(self.values)} if self.failure is None else {**data, "failure": self.failure}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Evaluation:
        """Return the evaluation that `to_json` described.

        Raises:
            MetricError: A value is not a finite number.
            KeyError, TypeError, ValueError: It is malformed.
        """
        subnet, failure = Subnet.from_json(data["subnet"]), data.get("failure")
        values = checked_values(subnet, {} if failure is not None else data["values"])
        return cls(int(data["index"]), subnet, values, float(data["seconds"]), failure and str(failure))


def shown(subnet: Subnet) -> str:
    """Return a sub-network as it appears in messages: JSON that can be read back."""
    return json.dumps(subnet.to_json(), sort_keys=True)


def checked_values(subnet: Subnet, values: object) -> dict[str, float]:
    """Return the values as floats; a MetricError names the sub-network and the invalid value."""
    if not isinstance(values, Mapping):
        raise MetricError(
            f"{shown(subnet)}: the evaluation returned {type(values).__name__}, not a mapping from names to numbers"
        )
    return {name: _finite(subnet, name, value) for name, value in values.items()}


def check_names(subnet: Subnet, values: Mapping[str, float], names: Iterable[str]) -> None:
    """Raise MetricError if a value with one of these names is missing."""
    for name in names:
        if name not in values:
            raise MetricError(
                f"{shown(subnet)}: the evaluation returned no value for {name!r}; {nearest(name, values)}"
            )


def _finite(subnet: Subnet, name: str, value: object) -> float:
    check_name(name)
    try:
        number = float(value)  # type: ignore[arg-type]  # numpy's and torch's scalars are numbers too
    except (TypeError, ValueError, OverflowError) as error:
        raise MetricError(f"{shown(subnet)}: {name!r} is {value!r}, not a number") from error
    if not math.isfinite(number):
        raise MetricError(f"{shown(subnet)}: {name!r} is {number}; a value must be finite")
    return number


# The outcome of an attempt to evaluate a sub-network: values, or the reason of the failure.

Evaluate = Callable[["Subnet"], Mapping[str, float]]
"""Returns the values of a sub-network by name, with at least one number for each objective and constraint."""


@dataclass(frozen=True)
class Outcome:
    """The values of one sub-network (finite numbers by name), or the reason of the failure."""

    values: Mapping[str, float]
    failure: str | None = None
    seconds: float = 0.0

    @classmethod
    def of(cls, subnet: Subnet, given: object, seconds: float) -> Outcome:
        """Make an outcome from the result of an evaluation: a mapping from names to numbers, or an error.

        Raises:
            MetricError: `given` is neither, so every evaluation would fail in the same way.
            SearchError: `given` is an error of the file system, the network or a worker, which does not depend on the
                sub-network.
        """
        if isinstance(given, Mapping):
            try:
                return cls(checked_values(subnet, given), None, seconds)
            except MetricError as error:
                given = error
        if isinstance(given, WorkerError):
            raise given
        if isinstance(given, OSError):
            raise SearchError(
                f"{shown(subnet)}: {type(given).__name__}: {given}; the machine failed, not the "
                "sub-network: fix the cause and resume the search (no evaluation is lost)"
            ) from given
        if isinstance(given, Exception):
            return cls({}, f"{type(given).__name__}: {given}", seconds)
        return cls(checked_values(subnet, given), None, seconds)


@dataclass(frozen=True)
class Measures:
    """All functions that return values: the evaluation, and the measures of single objectives."""

    evaluate: Any
    """An object with a method ``evaluate``, and ``evaluate_many`` if it has one, or a function; or None."""
    own: tuple[Objective, ...] = ()
    """Objectives with a `measure` of their own."""
    bars: Mapping[Subnet, Bar] | None = None
    """With racing: the quality that a sub-network must be able to reach, otherwise its measurement stops early."""

    def __call__(self, subnets: Sequence[Subnet]) -> list[Outcome]:
        """Return the outcome for each sub-network. An `Exception` in one of them fails only that sub-network."""
        start = time.perf_counter()
        given = self.given(subnets)
        each = (time.perf_counter() - start) / max(len(subnets), 1)
        return [self._with_own(subnet, values, each) for subnet, values in zip(subnets, given, strict=True)]

    @property
    def together(self) -> bool:
        """Whether evaluating several at once is cheaper than one after the other."""
        return hasattr(self.evaluate, "evaluate_many")

    def given(self, subnets: Sequence[Subnet]) -> Sequence[object]:
        """Return what the evaluation returns for each sub-network: values, or an error."""
        if self.evaluate is None:
            return [{} for _ in subnets]
        if self.together:
            raced = () if self.bars is None else (self.bars,)
            return list(self.evaluate.evaluate_many(subnets, *raced))
        function = getattr(self.evaluate, "evaluate", self.evaluate)
        return [_tried(function, subnet) for subnet in subnets]

    def _with_own(self, subnet: Subnet, given: object, seconds: float) -> Outcome:
        start = time.perf_counter()
        for objective in self.own:
            if isinstance(given, Mapping):
                assert objective.measure is not None
                value = _tried(objective.measure, subnet)
                given = value if isinstance(value, Exception) else {**given, objective.name: value}
        return Outcome.of(subnet, given, seconds + time.perf_counter() - start)


def _tried(function: Callable[[Subnet], Any], subnet: Subnet) -> Any:
    try:
        return function(subnet)
    except Exception as error:
        return error


def in_this_process(measures: Measures, subnets: Sequence[Subnet]) -> Iterator[tuple[int, Outcome]]:
    """Evaluate in this process; yield the position and outcome of each sub-network as soon as it is known."""
    if measures.together:
        yield from enumerate(measures(subnets))
        return
    for place, subnet in enumerate(subnets):
        yield place, measures([subnet])[0]


# Evaluations as a table: columns index, one for each value, seconds, failure, and the sub-network as JSON.

FIELD_LIMIT = 2**31 - 1
"""Most characters that a sub-network may have in a file; the csv module's own limit is 131072."""
LAST = ["seconds", "failure", "subnet"]
"""Names of the last columns."""


def write_csv(path: str | os.PathLike[str], evaluations: Iterable[Evaluation]) -> None:
    """Write the table in one step; `read_csv` gives every number back exactly."""
    rows = list(evaluations)
    names = list(dict.fromkeys(name for one in rows for name in one.values))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["index", *names, *LAST])
    for one in rows:
        numbers = [repr(one.values[name]) if name in one.values else "" for name in names]
        writer.writerow([one.index, *numbers, repr(one.seconds), one.failure or "", shown(one.subnet)])
    write_bytes(Path(path), text.getvalue().encode())


def read_csv(path: str | os.PathLike[str]) -> tuple[Evaluation, ...]:
    """Read what `write_csv` wrote.

    Raises:
        RecordError: The file is malformed; the message names the file and the line.
    """
    with open(path, encoding="utf-8", newline="") as file:
        limit = csv.field_size_limit(FIELD_LIMIT)
        reader = csv.reader(file, strict=True)
        try:
            return tuple(_evaluations(reader))
        except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
            raise RecordError(f"{path}:{max(reader.line_num, 1)}: {_said(error)}") from error
        finally:
            csv.field_size_limit(limit)


def _evaluations(rows: Iterator[list[str]]) -> Iterator[Evaluation]:
    first, *names = next(rows, [""])
    if first != "index" or names[-3:] != LAST or len(set(names)) < len(names):
        raise RecordError("the first line must be 'index', the names of the values, 'seconds', 'failure', 'subnet'")
    for place, row in enumerate(rows):
        if len(row) != len(names) + 1:
            raise RecordError(f"{len(row)} columns, but the first line has {len(names) + 1}")
        if row[0] != str(place):
            raise RecordError(f"index {row[0]!r}, but the next index is {place}")
        data = {"index": place, "seconds": _number("seconds", row[-3]), "subnet": json.loads(row[-1])}
        if row[-2]:
            yield Evaluation.from_json({**data, "failure": row[-2]})
        else:
            values = {name: _number(name, text) for name, text in zip(names[:-3], row[1:-3], strict=True)}
            yield Evaluation.from_json({**data, "values": values})


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise RecordError(f"{name}: {error}") from error


def _said(error: Exception) -> str:
    # A KeyError says only the key, quoted; its type makes that understandable.
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
