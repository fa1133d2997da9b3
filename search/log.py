"""Every evaluation of a search and its file: what makes an interrupted search go on where it was."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnas.runtime.storage.files import append_line, writing

from .errors import RecordError
from .evaluation import Evaluation, checked_values, shown
from .objectives import nearest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from bnas.passes import Subnet

FORMAT = "bnas-evaluations"
VERSION = 1


class EvaluationLog:
    """Evaluations in the order in which they were made, one for each sub-network, all with the same value names.

    With a file, each evaluation is on disk before `record` returns, in a line of its own: a process that is killed
    loses none. The line that it was writing then is dropped when the file is opened again. One process may write to a
    file at a time. The sub-networks are in canonical form when a Searcher records them.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, fingerprint: str = "") -> None:
        """Open a log, with what its file holds.

        Args:
            path: The file; it is made if there is none. None keeps the log in memory.
            fingerprint: Of the super-network that is evaluated: stands in the first line.

        Raises:
            RecordError: The file is malformed (the message names the line), or of another super-network; or the path
                is that of a folder.
            WriteError: It cannot be written.
        """
        self.path = None if path is None else Path(path)
        self.fingerprint = fingerprint
        self._evaluations: dict[Subnet, Evaluation] = {}
        self._names: tuple[str, ...] = ()
        if self.path is not None:
            self._read(self.path)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> EvaluationLog:
        """Return what a file holds by now as a log in memory: the file stays as it is, somebody may be writing to it.

        Raises:
            RecordError: The file is malformed; the message names the line.
        """
        log = cls()
        *lines, _ = Path(path).read_bytes().split(b"\n")
        if lines:
            log._take_lines(Path(path), lines)
        return log

    def __len__(self) -> int:
        return len(self._evaluations)

    def __iter__(self) -> Iterator[Evaluation]:
        return iter(self._evaluations.values())

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the values, in the order of the first evaluation that gave any."""
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
        if self._names and set(numbers) != set(self._names):
            odd = sorted(set(numbers) ^ set(self._names))
            raise RecordError(f"{shown(subnet)}: {odd[0]!r} is not in all evaluations; {nearest(odd[0], self._names)}")
        ordered = {name: numbers[name] for name in self._names or numbers}
        return self._append(Evaluation(len(self), subnet, ordered, seconds))

    def record_failure(self, subnet: Subnet, failure: str, seconds: float) -> Evaluation:
        """Append that an evaluation failed and why, and return it.

        Raises:
            RecordError: The sub-network is in the log already.
        """
        return self._append(Evaluation(len(self), subnet, {}, seconds, failure))

    def _append(self, evaluation: Evaluation) -> Evaluation:
        self._take(evaluation)
        if self.path is not None:
            append_line(self.path, _line(evaluation.to_json()))
        return evaluation

    def _take(self, evaluation: Evaluation) -> None:
        subnet = evaluation.subnet
        if subnet in self._evaluations:
            raise RecordError(f"{shown(subnet)}: is evaluation {self._evaluations[subnet].index} of this log already")
        if evaluation.failure is None:
            self._names = self._names or tuple(evaluation.values)
        self._evaluations[subnet] = evaluation

    def _read(self, path: Path) -> None:
        if path.is_dir():
            raise RecordError(f"{path}: is a folder; give the file in it, such as {path / 'evaluations.jsonl'}")
        data = path.read_bytes() if path.is_file() else b""
        *lines, torn = data.split(b"\n")
        if not lines:  # nothing, or a first line that was being written
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"")
            append_line(path, _line({"format": FORMAT, "version": VERSION, "fingerprint": self.fingerprint}))
            return
        self._take_lines(path, lines)
        if torn:
            with writing(path):
                os.truncate(path, len(data) - len(torn))

    def _take_lines(self, path: Path, lines: Sequence[bytes]) -> None:
        self._check_head(path, lines[0])
        for number, line in enumerate(lines[1:], 2):
            try:
                self._take_line(line)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise RecordError(f"{path}:{number}: {type(error).__name__}: {error}") from error

    def _take_line(self, line: bytes) -> None:
        evaluation = Evaluation.from_json(json.loads(line))
        if evaluation.index != len(self):
            raise RecordError(f"index {evaluation.index} where {len(self)} is next")
        if evaluation.failure is None and self._names and tuple(evaluation.values) != self._names:
            raise RecordError(f"values {', '.join(evaluation.values)} where {', '.join(self._names)} came before")
        self._take(evaluation)

    def _check_head(self, path: Path, line: bytes) -> None:
        try:
            head = json.loads(line)
            known = (head["format"], head["version"]) == (FORMAT, VERSION)
        except (ValueError, KeyError, TypeError):
            known = False
        if not known:
            raise RecordError(f"{path}:1: needs to be a file of format {FORMAT!r}, version {VERSION}")
        found = head.get("fingerprint")
        if self.fingerprint and found != self.fingerprint:
            raise RecordError(
                f"{path}: holds evaluations of another super-network (fingerprint {found}, not {self.fingerprint}); "
                "give another file"
            )


def _line(data: Any) -> bytes:
    return json.dumps(data, allow_nan=False).encode()
