"""What the benchmarks of a GPU found: tables on the terminal and in a file, within a budget of time."""

from __future__ import annotations

import gc
import json
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timing import Spread


@dataclass
class Report:
    """Prints tables in Markdown, and writes all of them as JSON after each row.

    A part that fails is noted and the next one goes on; one that does not fit into the time that is left is skipped.
    """

    output: Path | None
    seconds: float
    """The budget of all parts together."""
    machine: str
    started: float = field(default_factory=time.perf_counter)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What failed, and what was skipped."""
    share: float = 1.0
    """Of the seconds that parts are said to take: less in small sizes."""
    reserved: float = 0.0
    """Seconds that are kept for later parts."""

    @property
    def left(self) -> float:
        """Seconds that the part of now may still take."""
        return self.seconds - (time.perf_counter() - self.started) - self.reserved

    def table(self, name: str, title: str, head: Sequence[str]) -> Callable[..., None]:
        """Begin a table; returns what adds a row, by cells in the order of its head."""
        self.tables.setdefault(name, [])
        self.say(f"\n{title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")

        def add(*cells: Any) -> None:
            self.say(f"| {' | '.join(map(shown, cells))} |")
            self.tables[name].append({key: plain(cell) for key, cell in zip(head, cells, strict=True)})
            self.write()

        return add

    def tried(self, what: str, run: Callable[[], object], seconds: float) -> None:
        """Run a part that takes about so long."""
        wanted = seconds * self.share
        if self.left < wanted:
            return self.note(f"skipped: {what}: it wants {wanted:.0f} s, and {max(self.left, 0):.0f} s are left")
        start = time.perf_counter()
        try:
            run()
        except Exception as error:
            told = "".join(traceback.format_exception(error)[-4:])
            self.note(f"failed: {what}: {told}")
        release()
        self.say(f"({what}: {time.perf_counter() - start:.1f} s; {self.left:.0f} s left)")

    def note(self, text: str) -> None:
        """Print and keep what a reader of the tables must know."""
        self.notes.append(text)
        self.say(text)
        self.write()

    def say(self, text: str) -> None:
        """Print at once: what ran until a machine went away is known."""
        print(text, flush=True)

    def write(self) -> None:
        """Write ``gpu.json``."""
        if self.output is not None:
            self.output.mkdir(parents=True, exist_ok=True)
            found = {"machine": self.machine, "notes": self.notes, "tables": self.tables}
            (self.output / "gpu.json").write_text(json.dumps(found, indent=1))


def shown(cell: Any) -> str:
    """A cell in Markdown."""
    if isinstance(cell, Spread):
        return cell.shown(3)
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return f"{cell:.2e}" if cell and abs(cell) < 1e-2 else f"{cell:.2f}"
    return str(cell)


def plain(cell: Any) -> Any:
    """A cell in JSON."""
    return list(cell.values) if isinstance(cell, Spread) else cell


def release() -> None:
    """Give back what a part held on the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def described(device: torch.device) -> str:
    """The machine, in a line."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    return f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads"
