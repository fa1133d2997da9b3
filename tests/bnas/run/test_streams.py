"""A whole run on data that are never in memory together: it finds what a run on lists of the same batches finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from job_cases import Shuffled, job
from stream_cases import counted

import bnas
from bnas.run.plan.probe import samples_in
from bnas.runtime import FineTune, Recipe
from bnas.runtime.evaluate.evaluation import Batch

RECIPE = Recipe(memory_format="contiguous", num_bn_adaptation_samples=24, train_steps=48)


def cut(seed: int, size: int) -> list[Batch]:
    """The samples of `Shuffled` in small batches, in their order."""
    data = Shuffled(seed)
    return [(data.images[start : start + size], data.labels[start : start + size]) for start in range(0, 48, size)]


def run(folder: Path, train: Any, validation: Any, test: Any, **changes: Any) -> tuple[Any, list[float]]:
    """The front and the accuracies of a run."""
    data = bnas.Splits(train, validation, test)
    report = bnas.run_job(job(data=data, recipe=RECIPE, int8=None, **changes), folder)
    return json.loads((folder / "pareto.json").read_text()), [row.accuracy for row in report.rows]


@pytest.mark.parametrize("tuned", [None, FineTune(epochs=1)], ids=["searched", "fine-tuned"])
def test_a_run_on_streams_is_a_run_on_lists(tmp_path: Path, tuned: FineTune | None) -> None:
    train, held_out = cut(0, 12), cut(1, 4)
    loaders, streams = zip(*(counted(one) for one in (train, held_out, held_out)), strict=True)
    found = run(tmp_path / "streams", *loaders, fine_tune=tuned)
    assert found == run(tmp_path / "lists", train, held_out, held_out, fine_tune=tuned)
    assert max(stream.most for stream in streams[1:]) <= 2
    assert streams[0].most <= 2 + 2 + 2, "two batches are kept to recalibrate, two by the search that follows"
    assert found != run(tmp_path / "others", cut(2, 12), held_out, held_out, fine_tune=tuned)


def test_a_plan_counts_the_samples_of_a_stream() -> None:
    assert [samples_in(one) for one in (counted(cut(1, 5))[0], Shuffled(0), cut(0, 12))] == [48] * 3
