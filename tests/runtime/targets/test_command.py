"""A program as a target: one that really runs the model in another process, and ones that misbehave in every way."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bnas
from bnas.runtime import Command, LatencyError, TargetError
from bnas.runtime.latency.measurement import measure_latency

REAL = """
import sys, time
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
shapes = dict(one.split(":") for one in sys.argv[2].split(","))
feed = {name: np.zeros([int(size) for size in shape.split("x")], np.float32) for name, shape in shapes.items()}
session.run(None, feed)
start = time.perf_counter()
for _ in range(20):
    session.run(None, feed)
print("loaded", sys.argv[1])
print(f"latency: {1000 * (time.perf_counter() - start) / 20:.6f} ms")
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing of this is remembered in the folder of the user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    found = {}
    for name, width in (("narrow", 4), ("wide", 96)):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3)).eval()
        found[name] = tmp_path / f"{name}.onnx"
        bnas.export_onnx(module, found[name], torch.zeros(1, 3, 24, 24))
    return found


def program(folder: Path, text: str, **settings: Any) -> Command:
    path = folder / "program.py"
    path.write_text(text)
    return Command(command=(sys.executable, str(path), *settings.pop("words", ())), **settings)


def counted(folder: Path, answer: str) -> str:
    """A program that notes each start."""
    return f"import sys\nopen({str(folder / 'starts')!r}, 'a').write('x')\n{answer}"


def starts(folder: Path) -> int:
    path = folder / "starts"
    return len(path.read_text()) if path.exists() else 0


def test_a_program_that_runs_the_model_in_another_process(tmp_path: Path, files: dict[str, Path]) -> None:
    target = program(tmp_path, REAL, words=("{file}", "{shapes}"))
    found = measure_latency(dict(files), (2, 3, 24, 24), reference="wide", target=target)
    assert 0 < found["narrow"].wall_median_ms < found["wide"].wall_median_ms
    assert (found["narrow"].runs, found["narrow"].batch, found["narrow"].clock) == (1, 2, "wall")
    assert found["narrow"].ratio == pytest.approx(found["narrow"].wall_median_ms / found["wide"].wall_median_ms)
    assert found["narrow"].stable, "the program says how often it measures"


@pytest.mark.parametrize(
    ("line", "milliseconds"),
    [
        ("12.5", 12.5),
        ("12.5 ms", 12.5),
        ("latency: 1.25e1 ms", 12.5),
        ("mean = 3", 3.0),
        ('{"ms": 0.5, "runs": 100}', 0.5),
    ],
)
def test_what_a_program_may_print(tmp_path: Path, files: dict[str, Path], line: str, milliseconds: float) -> None:
    target = program(tmp_path, f"print('hello')\nprint({line!r})\nprint()")
    assert measure_latency(files["narrow"], target=target).wall_median_ms == milliseconds


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "printed nothing; it must be a positive number"),
        ("print('fast')", "its last line is 'fast'"),
        ("print(-1)", "its last line is '-1'"),
        ("print('nan')", "its last line is 'nan'"),
        ("print('{\"s\": 1}')", "its last line is"),
        ("print(True)", "its last line is 'True'"),
        ("import sys; print(5); sys.stderr.write('no board'); sys.exit(3)", r"exit status 3; it said:\s+no board"),
        ("import sys; sys.stderr.write('x' * 9999 + 'end'); sys.exit(1)", "xend"),
        ("import time; print(1, flush=True); time.sleep(60)", "no result after 1 s"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "exit status -9"),
    ],
)
def test_programs_that_misbehave(tmp_path: Path, files: dict[str, Path], text: str, reason: str) -> None:
    target = program(tmp_path, text, timeout=1, retries=0)
    with pytest.raises(LatencyError, match=f"(?s)model: .*{reason}") as caught:
        measure_latency(files["narrow"], target=target)
    assert len(str(caught.value)) < 4000
    assert not list((tmp_path / "cache").rglob("*.json")), "nothing of it is remembered"


def test_what_a_program_started_is_stopped_with_it(tmp_path: Path, files: dict[str, Path]) -> None:
    child = f"import time; time.sleep(3); open({str(tmp_path / 'survived')!r}, 'w')"
    text = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}])"
    with pytest.raises(LatencyError, match="no result"):
        measure_latency(files["narrow"], target=program(tmp_path, text, timeout=1, retries=0))
    time.sleep(3)
    assert not (tmp_path / "survived").exists()


def test_a_program_that_is_not_there(tmp_path: Path, files: dict[str, Path]) -> None:
    with pytest.raises(LatencyError, match=r"narrow: /no/such: cannot be started: No such file.* \(2 attempts\)"):
        measure_latency({"narrow": files["narrow"]}, target=Command(command=("/no/such",)))


def test_a_failure_is_tried_again(tmp_path: Path, files: dict[str, Path]) -> None:
    text = counted(tmp_path, f"n = len(open({str(tmp_path / 'starts')!r}).read())\nsys.exit(1) if n < 3 else print(7)")
    with pytest.raises(LatencyError, match=r"\(2 attempts\)"):
        measure_latency(files["narrow"], target=program(tmp_path, text, retries=1))
    assert measure_latency(files["narrow"], target=program(tmp_path, text, retries=1)).wall_median_ms == 7


def test_results_are_remembered_by_content_and_settings(tmp_path: Path, files: dict[str, Path]) -> None:
    text = counted(tmp_path, "print(4)")
    target = program(tmp_path, text)
    for _ in range(2):
        measure_latency(dict(files), target=target)
    assert starts(tmp_path) == 2, "once for each file"
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(files["narrow"].read_bytes())
    measure_latency(copy, target=target)
    assert starts(tmp_path) == 2, "the name of the file does not count"
    for changed in ({"batch": 2}, {"threads": 2}):
        measure_latency(files["narrow"], target=target, **changed)
    measure_latency(files["narrow"], target=program(tmp_path, text, description="another board"))
    assert starts(tmp_path) == 5
    measure_latency(files["narrow"], target=program(tmp_path, text, remember=False))
    assert starts(tmp_path) == 6
    for kept in (tmp_path / "cache").rglob("*.json"):
        kept.write_text(json.dumps({"ms": -3}) if kept.stat().st_size % 2 else "{")
    assert measure_latency(files["narrow"], target=target).wall_median_ms == 4, "what is damaged is measured again"


def test_as_many_run_at_once_as_there_are_boards(tmp_path: Path, files: dict[str, Path]) -> None:
    """Each waits until another one is there as well."""
    text = f"""
import os, pathlib, sys, time
folder = pathlib.Path({str(tmp_path)!r})
(folder / f"here{{os.getpid()}}").touch()
while len(list(folder.glob("here*"))) < 2:
    time.sleep(0.01)
print(1)
"""
    found = measure_latency(dict(files), target=program(tmp_path, text, parallel=2, timeout=60, retries=0))
    assert len(found) == 2


def test_a_command_has_no_outputs_and_needs_words(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="reports only times, not outputs"):
        Command(command="bench").run(None, {})
    for words in ((), ("",)):
        with pytest.raises(TargetError, match="command"):
            Command(command=words)
