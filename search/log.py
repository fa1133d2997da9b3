"""The log of all evaluations of a search, and its file, from which an interrupted search continues."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnas.runtime.storage.files import append_line, checksum, claim_growing, reading, there, write_bytes, writing

from .errors import RecordError
from .evaluation import Evaluation, checked_values, shown
from .objectives import nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from bnas.passes import Subnet

FORMAT = "bnas-evaluations"
VERSION = 2
"""Since 2 each line has a checksum."""
BEGIN = f'{{"format": "{FORMAT}"'.encode()
"""How each file begins."""
CHECK = "check"
"""Key of a line's checksum: its first digits, computed over the other keys of the line."""


class RepairWarning(UserWarning):
    """A log file contained evaluations twice, because two processes had written to it; each was read once."""


class EvaluationLog:
    """Log of evaluations in order, one for each sub-network, all with the same value names.

    With a file, each evaluation is on disk before `record` returns, in its own line with a checksum. A killed process
    therefore loses no finished evaluation; an incomplete last line is dropped when the file is opened again. Only one
    process may write to a file at a time; if two processes of the same search wrote to it, opening the file repairs
    it. A `Searcher` records sub-networks in canonical form.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, fingerprint: str = "") -> None:
        """Open a log and read its file, if there is one.

        Args:
            path: The file; it is created if it does not exist. None keeps the log in memory.
            fingerprint: Fingerprint of the evaluated super-network; it is stored in the first line.

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
        """Return the present content of a file as a log in memory; the file is not changed and may be in use.

        Raises:
            RecordError: The file is malformed; the message names the line.
        """
        log = cls()
        with reading(path):
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

    def check_names(self, names: Iterable[str]) -> None:
        """Raise RecordError unless the evaluations have values of these names."""
        if missing := [name for name in names if self._names and name not in self._names]:
            raise RecordError(
                f"{self.path or 'the log'}: its evaluations have no value {missing[0]!r}, which this search needs; "
                f"{nearest(missing[0], self._names)}. Use the objectives and constraints that the log began with, or "
                "another file"
            )

    def get(self, subnet: Subnet) -> Evaluation | None:
        """Return the evaluation of a sub-network, or None."""
        return self._evaluations.get(subnet)

    def record(self, subnet: Subnet, values: Mapping[str, float], seconds: float) -> Evaluation:
        """Append an evaluation and return it.

        Raises:
            MetricError: A value is not a finite number.
            RecordError: The sub-network is already in the log, or other evaluations have other value names.
        """
        numbers = checked_values(subnet, values)
        if self._names and set(numbers) != set(self._names):
            odd = sorted(set(numbers) ^ set(self._names))[0]
            raise RecordError(
                f"{self.path or 'the log'}: its evaluations {'have no' if odd in numbers else 'have'} value {odd!r}, "
                f"and that of {shown(subnet)} {'has one' if odd in numbers else 'has none'}: use the objectives and "
                "the evaluation that the log began with, or another file"
            )
        ordered = {name: numbers[name] for name in self._names or numbers}
        return self._append(Evaluation(len(self), subnet, ordered, seconds))

    def record_failure(self, subnet: Subnet, failure: str, seconds: float) -> Evaluation:
        """Append a failed evaluation with its reason, and return it.

        Raises:
            RecordError: The sub-network is in the log already.
        """
        return self._append(Evaluation(len(self), subnet, {}, seconds, failure))

    def _append(self, evaluation: Evaluation) -> Evaluation:
        self._take(evaluation)
        if self.path is not None:
            append_line(self.path, sealed(evaluation.to_json()))
        return evaluation

    def _take(self, evaluation: Evaluation) -> None:
        subnet = evaluation.subnet
        if subnet in self._evaluations:
            raise RecordError(
                f"{shown(subnet)}: is already evaluation {self._evaluations[subnet].index} of this log; "
                "read it with get(subnet) instead of recording it again"
            )
        if evaluation.failure is None:
            self._names = self._names or tuple(evaluation.values)
        self._evaluations[subnet] = evaluation

    def _read(self, path: Path) -> None:
        if path.is_dir():
            raise RecordError(f"{path}: is a folder; give a file, such as {path / 'evaluations.jsonl'}")
        claim_growing(path)
        with reading(path):
            data = path.read_bytes() if there(path) else b""
        *lines, torn = data.split(b"\n")
        if not lines and not BEGIN.startswith(torn) and not torn.startswith(BEGIN):
            raise RecordError(f"{path}:1: must be a file of format {FORMAT!r}, version {VERSION}; choose another file")
        if not lines:  # nothing, or a first line that was being written
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"")
            append_line(path, self._head())
            return
        twice = self._take_lines(path, lines)
        if twice:
            self._repair(path, twice)
        elif torn:
            with writing(path):
                os.truncate(path, len(data) - len(torn))

    def _head(self) -> bytes:
        return sealed({"format": FORMAT, "version": VERSION, "fingerprint": self.fingerprint})

    def _repair(self, path: Path, twice: int) -> None:
        """Rewrite the file with each evaluation once."""
        head = path.read_bytes().split(b"\n", 1)[0]
        lines = [head, *(sealed(one.to_json()) for one in self)]
        write_bytes(path, b"\n".join([*lines, b""]))
        told = f"{path}: two processes had written to it; removed {twice} duplicate evaluations"
        warnings.warn(told, RepairWarning, stacklevel=4)

    def _take_lines(self, path: Path, lines: Sequence[bytes]) -> int:
        """Read the evaluations in `lines`; return the number of duplicates."""
        self._check_head(path, lines[0])
        for number, line in enumerate(lines[1:], 2):
            try:
                self._take_line(line)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise RecordError(
                    f"{path}:{number}: {type(error).__name__}: {error}; remove this and all later lines to resume "
                    "from the line before, or begin a new search"
                ) from error
        return len(lines) - 1 - len(self)

    def _take_line(self, line: bytes) -> None:
        data = _checked(json.loads(line))
        evaluation = Evaluation.from_json(data)
        if evaluation.index < len(self) and self._known(evaluation):
            return
        if evaluation.index != len(self):
            raise RecordError(f"index {evaluation.index}, but the next index is {len(self)}")
        if evaluation.failure is None and self._names and tuple(evaluation.values) != self._names:
            raise RecordError(f"values {', '.join(evaluation.values)}, but earlier lines have {', '.join(self._names)}")
        self._take(evaluation)

    def _known(self, evaluation: Evaluation) -> bool:
        """Whether the log has the same evaluation already; its duration may differ."""
        return self.get(evaluation.subnet) == evaluation

    def _check_head(self, path: Path, line: bytes) -> None:
        try:
            head = json.loads(line)
            known = (head["format"], head["version"]) == (FORMAT, VERSION)
            head = _checked(head)
        except (ValueError, KeyError, TypeError):
            known = False
        if not known:
            raise RecordError(f"{path}:1: must be a file of format {FORMAT!r}, version {VERSION}; choose another file")
        found = head.get("fingerprint")
        if self.fingerprint and found != self.fingerprint:
            raise RecordError(
                f"{path}: holds evaluations of another super-network (fingerprint {found}, not {self.fingerprint}); "
                "choose another file"
            )


def sealed(data: Mapping[str, Any]) -> bytes:
    """Return a line of the log: `data` with its checksum."""
    return json.dumps({**data, CHECK: _check(data)}, allow_nan=False).encode()


def _checked(data: Any) -> dict[str, Any]:
    """Check the checksum of a line and return its content without the checksum."""
    if not isinstance(data, dict) or data.pop(CHECK, None) != _check(data):
        raise ValueError("the line is damaged: its checksum does not match")
    return data


def _check(data: Mapping[str, Any]) -> str:
    return checksum(json.dumps(data).encode())[:16]
