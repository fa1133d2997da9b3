"""A search that is killed ten times at random moments goes on to bitwise the front of one that was not."""

from __future__ import annotations

import os
import random
import signal
from multiprocessing import get_context
from pathlib import Path

import pytest
from killed_search import main

from bnas.search import EvaluationLog

CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(["bnas.search"])


def run(log: Path, result: Path, seconds: float | None = None) -> int | None:
    """Run the search in a process of its own; returns how that ended."""
    process = CONTEXT.Process(target=main, args=(str(log), str(result), seconds))
    process.start()
    process.join()
    return process.exitcode


@pytest.mark.skipif(os.name != "posix", reason="signals are sent")
def test_killed_ten_times_it_finds_the_same(tmp_path: Path) -> None:
    assert run(tmp_path / "whole.jsonl", tmp_path / "whole") == 0
    chance, kills, known = random.Random(1), 0, []
    length = float((tmp_path / "whole.seconds").read_text())
    while kills < 10:
        code = run(tmp_path / "log.jsonl", tmp_path / "front", chance.uniform(0.0, length))
        if code == 0:  # it came through: the rest of the kills is for a search from the beginning
            assert (tmp_path / "front").read_bytes() == (tmp_path / "whole").read_bytes()
            (tmp_path / "log.jsonl").unlink()
            continue
        assert code == -signal.SIGKILL
        kills += 1
        known.append(len(EvaluationLog(tmp_path / "log.jsonl")) if (tmp_path / "log.jsonl").exists() else 0)
    assert run(tmp_path / "log.jsonl", tmp_path / "front") == 0
    assert (tmp_path / "front").read_bytes() == (tmp_path / "whole").read_bytes()
    assert max(known) > 0
    assert list(EvaluationLog(tmp_path / "log.jsonl")) == list(EvaluationLog(tmp_path / "whole.jsonl"))
