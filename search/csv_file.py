"""Evaluations as a table: columns index, one for each value, seconds, failure, and the sub-network as JSON."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

from bnas.runtime.files import write_bytes
from bnas.search.errors import RecordError
from bnas.search.evaluation import Evaluation, shown

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator

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
            raise RecordError(f"{len(row)} columns where the first line has {len(names) + 1}")
        if row[0] != str(place):
            raise RecordError(f"index {row[0]!r} where {place} is next")
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
