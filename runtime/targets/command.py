"""A program of the user as a target: it gets a file and prints milliseconds, of a board, a phone or a simulator."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import platformdirs
from pydantic import Field, field_validator

from bnas.passes.settings import Count, Names, Positive, Whole, settings
from bnas.runtime.onnx.weights import weight_files
from bnas.runtime.storage.files import write_json

from .target import Array, Feed, File, Network, TargetError, written

FILE, BATCH, THREADS, SHAPES = "{file}", "{batch}", "{threads}", "{shapes}"
"""Placeholders for the path of the ONNX file, the batch size, the number of threads and the shapes of the inputs."""
SHOWN = 2000
"""Number of characters, from the end of a program's output, that an error quotes."""
_LINE = re.compile(r"(?:.*[:=]\s*)?([0-9.eE+-]+)\s*(?:ms|milliseconds)?\s*")


@settings(TargetError, kw_only=True)
class Command:
    """A target that starts your program with the path of an ONNX file; the program prints the milliseconds of one run.

    The last line of its output counts: a number, such as ``12.5`` or ``latency: 12.5 ms``, or JSON, ``{"ms": 12.5}``.
    The program is started without a shell, once for each network. Results are remembered on disk by the content of the
    file and all settings, so that no board measures a network twice.
    """

    kind: Literal["command"] = "command"
    """Name of the target."""
    command: Annotated[Names, Field(min_length=1)]
    """The program and its arguments, such as ``["ssh", "board", "./bench.sh", "{file}"]``. ``{file}`` stands for the
    path of the file (without ``{file}``, the path comes last), ``{batch}`` and ``{threads}`` for these numbers, and
    ``{shapes}`` for the shapes of the inputs, such as ``image:1x3x224x224,mask:1x224``."""
    description: str = ""
    """Description of the device, such as "Pixel 8, 1.7 GHz". After a change, everything is measured again."""
    timeout: Positive = 600.0
    """Seconds after which the program is stopped."""
    retries: Whole = 1
    """Number of further attempts after a failure."""
    parallel: Count = 1
    """Number of programs that may run at the same time, such as the number of boards."""
    remember: bool = True
    """Whether results are kept on disk, in ``bnas/latencies`` of the user's cache folder."""

    clock: ClassVar[Literal["cpu", "wall"]] = "wall"
    in_turns: ClassVar[bool] = False

    @field_validator("command")
    @classmethod
    def _words(cls, command: tuple[str, ...]) -> tuple[str, ...]:
        if not all(command):
            raise ValueError("no word of the command may be empty")
        return command

    def build(self, network: Network, folder: Path) -> File:
        """The ONNX file."""
        return written(network.onnx, folder)

    def load(self, file: File, feed: Feed, threads: int) -> Any:
        """Return the words of the command, and the file for its result."""
        path = Path(os.fsdecode(file)) if isinstance(file, bytes) else file
        batch = next((len(array) for array in feed.values() if array.ndim), 1)
        shapes = {name: (array.shape, str(array.dtype)) for name, array in feed.items()}
        told = ",".join(f"{name}:{'x'.join(map(str, array.shape))}" for name, array in feed.items())
        values = {FILE: str(path), BATCH: str(batch), THREADS: str(threads), SHAPES: told}
        return list(self._words_for(values)), _kept(self.describe(), path, threads, shapes)

    def run(self, loaded: Any, feed: Feed) -> Sequence[Array]:
        """Raise `TargetError`: a command reports only times."""
        raise TargetError(f"{self.command[0]}: a command target reports only times, not outputs")

    def time(self, loaded: Any, feed: Feed, repeats: int) -> tuple[float, float]:
        """Return the printed or remembered milliseconds, as CPU and as wall-clock time."""
        words, place = loaded
        if self.remember and (known := _remembered(place)) is not None:
            return known, known
        milliseconds = self._measured(words)
        if self.remember:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_json(place, {"ms": milliseconds, "target": self.describe()})
        return milliseconds, milliseconds

    def describe(self) -> dict[str, Any]:
        """The command and its description."""
        return {"target": "command", "command": list(self.command), "description": self.description}

    def _words_for(self, values: Mapping[str, str]) -> Iterator[str]:
        own = self.command if any(FILE in word for word in self.command) else (*self.command, FILE)
        for word in own:
            for name, value in values.items():
                word = word.replace(name, value)
            yield word

    def _measured(self, words: Sequence[str]) -> float:
        """Run the command until an attempt succeeds; return its milliseconds."""
        fault = ""
        for _ in range(1 + self.retries):
            try:
                return self._once(words)
            except TargetError as error:
                fault = str(error)
        raise TargetError(f"{fault} ({1 + self.retries} attempts)" if self.retries else fault)

    def _once(self, words: Sequence[str]) -> float:
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        try:
            process = subprocess.Popen(words, start_new_session=True, **streams)
        except OSError as error:
            raise TargetError(f"{words[0]}: cannot be started: {error.strerror or error}") from error
        with process:
            try:
                printed, errors = process.communicate(timeout=self.timeout)
            except BaseException as error:
                said = _stopped(process)
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
                raise TargetError(f"{words[0]}: no result after {self.timeout:g} s{_said(said)}") from error
        if process.returncode:
            raise TargetError(f"{words[0]}: ended with exit status {process.returncode}{_said(errors)}")
        return self._read(words[0], printed.decode(errors="replace"), errors)

    def _read(self, program: str, printed: str, errors: bytes) -> float:
        lines = [line for line in printed.splitlines() if line.strip()]
        found = _number(lines[-1].strip()) if lines else None
        if found is None or not (math.isfinite(found) and found > 0):
            last = f"its last line is {lines[-1].strip()[:200]!r}" if lines else "it printed nothing"
            allowed = 'it must be a positive number of milliseconds, such as 12.5, or {"ms": 12.5}'
            raise TargetError(f"{program}: {last}; {allowed}{_said(errors)}")
        return found


def _stopped(process: subprocess.Popen[bytes]) -> bytes:
    """Stop a program and its child processes; return its standard error output."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.communicate()[1]


def _number(line: str) -> float | None:
    """Return the milliseconds in a line of output; None if it has none."""
    try:
        data = json.loads(line)
    except ValueError:
        found = _LINE.fullmatch(line)
        data = found[1] if found else None
    value = data.get("ms") if isinstance(data, dict) else data
    try:
        return None if isinstance(value, bool) or value is None else float(value)
    except (TypeError, ValueError):
        return None


def _said(errors: bytes | None) -> str:
    """Return a program's standard error output, as the end of an error message."""
    text = (errors or b"").decode(errors="replace").strip()
    return f"; it said:\n{text[-SHOWN:]}" if text else ""


def _kept(description: dict[str, Any], path: Path, threads: int, shapes: dict[str, Any]) -> Path:
    """Return the path under which the result for a file is remembered."""
    digest = hashlib.sha256(json.dumps([description, threads, shapes], sort_keys=True).encode())
    for one in (path, *weight_files(path)):
        digest.update(hashlib.sha256(one.read_bytes()).digest())
    return platformdirs.user_cache_path("bnas") / "latencies" / f"{digest.hexdigest()}.json"


def _remembered(place: Path) -> float | None:
    """Return the remembered result; None if there is none or it cannot be read."""
    try:
        found = float(json.loads(place.read_bytes())["ms"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if math.isfinite(found) and found > 0 else None
