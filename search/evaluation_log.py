"""Every evaluation of a search, in order, and its file: what makes an interrupted search go on where it was."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING

from bnas.passes import Subnet
from bnas.search.errors import RecordError
from bnas.search.evaluation import Evaluation, checked_values, shown
from bnas.search.objective import nearest
from bnas.search.text_file import write_text

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

FIELD_LIMIT = 2**31 - 1
"""Most characters that a sub-network may have in a file; the csv module's own limit is 131072."""


class EvaluationLog:
    """Evaluations in the order in which they were made, one for each sub-network, all with the same value names.

    The sub-networks are in canonical form when a Searcher records them.
    """

    def __init__(self) -> None:
        self._evaluations: dict[Subnet, Evaluation] = {}
        self._names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self._evaluations)

    def __iter__(self) -> Iterator[Evaluation]:
        return iter(self._evaluations.values())

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the values, in the order of the first evaluation."""
        return self._names

    def get(self, subnet: Subnet) -> Evaluation | None:
        """Return the evaluation of a sub-network, or None."""
        return self._evaluations.get(subnet)

    def record(self, subnet: Subnet, values: Mapping[str, float], seconds: float) -> Evaluation:
        """Append an evaluation and return it.

        Raises:
            MetricError: A value is not a finite number.
            RecordError: The sub-network is in the log already, or the names are not those of the other evaluations.
        """
        numbers = checked_values(subnet, values)
        if subnet in self._evaluations:
            raise RecordError(f"{shown(subnet)}: is evaluation {self._evaluations[subnet].index} of this log already")
        if self._evaluations and set(numbers) != set(self._names):
            odd = sorted(set(numbers) ^ set(self._names))
            raise RecordError(f"{shown(subnet)}: {odd[0]!r} is not in all evaluations; {nearest(odd[0], self._names)}")
        self._names = self._names if self._evaluations else tuple(numbers)
        ordered = {name: numbers[name] for name in self._names}
        evaluation = Evaluation(len(self), subnet, ordered, seconds)
        self._evaluations[subnet] = evaluation
        return evaluation

    def write_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the log in one step: columns index, one for each value, seconds, and the sub-network as JSON.

        `read_csv` gives every number back exactly.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["index", *self._names, "seconds", "subnet"])
        for one in self:
            numbers = [repr(one.values[name]) for name in self._names]
            writer.writerow([one.index, *numbers, repr(one.seconds), shown(one.subnet)])
        write_text(path, text.getvalue())

    @classmethod
    def read_csv(cls, path: str | os.PathLike[str]) -> EvaluationLog:
        """Read what `write_csv` wrote.

        Raises:
            RecordError: The file is malformed; the message names the file and the line.
        """
        with open(path, encoding="utf-8", newline="") as file:
            limit = csv.field_size_limit(FIELD_LIMIT)
            reader = csv.reader(file, strict=True)
            try:
                return cls._from_rows(reader)
            except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
                raise RecordError(f"{path}:{max(reader.line_num, 1)}: {_said(error)}") from error
            finally:
                csv.field_size_limit(limit)

    @classmethod
    def _from_rows(cls, rows: Iterator[list[str]]) -> EvaluationLog:
        first, *names = next(rows, [""])
        if first != "index" or names[-2:] != ["seconds", "subnet"] or len(set(names)) < len(names):
            raise RecordError("the first line must be 'index', the names of the values, 'seconds', 'subnet'")
        log = cls()
        for row in rows:
            if len(row) != len(names) + 1:
                raise RecordError(f"{len(row)} columns where the first line has {len(names) + 1}")
            if row[0] != str(len(log)):
                raise RecordError(f"index {row[0]!r} where {len(log)} is next")
            log.record(_subnet(row[-1]), _numbers(names[:-2], row[1:-2]), _numbers(["seconds"], row[-2:-1])["seconds"])
        log._names = tuple(names[:-2])
        return log


def _subnet(text: str) -> Subnet:
    return Subnet.from_json(json.loads(text))


def _numbers(names: list[str], texts: list[str]) -> dict[str, float]:
    try:
        return {name: float(text) for name, text in zip(names, texts, strict=True)}
    except ValueError as error:
        raise RecordError(f"{', '.join(names)}: {error}") from error


def _said(error: Exception) -> str:
    # A KeyError says only the key, quoted; its type makes that understandable.
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
