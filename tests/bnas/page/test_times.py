"""Times by layer in the report: beside the widths, adding up to the total, only where they were measured."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from run_cases import latency, profile, stamp, write_run

from bnas.page.members import layer_rows
from bnas.page.notes import ProfileNote
from bnas.page.page import Page
from bnas.page.recorded import read_run
from bnas.page.times import UNTIMED, Times, times_of
from bnas.runtime import SuperNetwork


def changed(run: Path, **row: Any) -> Page:
    """The page of a run whose original is recorded otherwise."""
    data = json.loads((run / "report.json").read_text())
    data["rows"][0].update(row)
    (run / "report.json").write_text(json.dumps(data))
    stamp(run)
    return Page(read_run(run))


def test_each_layer_has_its_time_beside_its_width(run: Path) -> None:
    page = Page(read_run(run))
    html = page.html()
    for layer in page.layers:
        row = re.search(rf"<th[^>]*>{re.escape(layer.name)}[ <].*?</tr>", html, re.DOTALL)
        assert row is not None
        assert f"{layer.width / 1000:.3f} ms" in row[0]
    assert html.count('class="time"') == 2 * len(page.layers)
    assert "other operators" in html
    assert "ReduceMean 0.005, ReorderOutput 0.002" in html


def test_rows_and_others_add_up_to_all(run: Path, supernet: SuperNetwork) -> None:
    page = Page(read_run(run))
    assert list(page.times) == ["original", "best", "smallest"]
    assert page.run.results is not None
    for row in page.run.results.rows:
        assert row.profile is not None
        times = page.times[row.name]
        assert times.total == pytest.approx(sum(row.profile.layers.values()) + sum(row.profile.other.values()))
        assert times.total == pytest.approx(times.rest + sum(ms or 0 for ms in times.layers))
        assert times.rest == pytest.approx(0.007)


def test_a_layer_that_is_called_twice_counts_once_and_what_has_no_row_is_other(supernet: SuperNetwork) -> None:
    rows = layer_rows(supernet.architecture)
    found = {rows[0].name: 0.3, "positions": 0.2}
    note = ProfileNote(layers=found, other={"Softmax": 0.1, "positions": 0.05}, run_ms=1, runs=3)
    times = times_of(note, [rows[0], rows[0], rows[1]])
    assert times == Times((0.3, None, None), (("positions", 0.25), ("Softmax", 0.1)))
    assert times.total == pytest.approx(0.65)
    assert times.told() == "0.350 ms (54 %)"
    assert times.operators(1) == "positions 0.250, and 1 more"


@pytest.mark.parametrize("place", [1, 4])
def test_the_slowest_layers_are_named(place: int, run: Path, supernet: SuperNetwork) -> None:
    note = profile(supernet, supernet.space.maximal())
    slow = list(note["layers"])[place]
    note["layers"][slow] = 5.0
    html = changed(run, profile=note).html()
    told = re.search(r"Most time of the original goes into (\S+) \((\d+) %\)", html)
    assert told is not None
    assert told[1] == slow
    assert int(told[2]) > 90


def test_it_says_that_runs_with_a_profile_are_slower(run: Path) -> None:
    html = changed(run, latency={**latency(0.4), "wall_median_ms": 0.41}).html()
    assert "Runs with the profiler are slower: the original took 0.500 ms with it, and 0.410 ms without it." in html


def test_the_table_has_a_column_of_times_for_each_network(run: Path) -> None:
    page = Page(read_run(run))
    head, *rows = csv.reader(io.StringIO(dict(page.tables())["architecture"].decode()))
    assert head[-3:] == ["original ms", "best ms", "smallest ms"]
    for column, times in zip((-3, -2, -1), page.times.values(), strict=True):
        layers = [float(row[column] or 0) for row in rows]
        assert len(layers) == len(page.layers)
        assert sum(layers) == pytest.approx(times.total - times.rest)


def test_only_winners_have_times_since_no_others_are_measured(run: Path) -> None:
    page = Page(read_run(run))
    members = page._data()["members"]
    winners = {one.key for one in page.members.winners.values()}
    assert {key for key, one in members.items() if one["times"]["layers"]} == winners
    assert {one["times"]["total"] for key, one in members.items() if key not in winners} == {UNTIMED}


def test_where_nothing_was_measured_it_says_why(run: Path) -> None:
    html = changed(run, profile=None, latency={**latency(1), "machine": {"target": "OpenVINO 2026"}}).html()
    assert "they are the profile of ONNX Runtime, and this run measured on OpenVINO 2026" in html
    assert 'class="time"' not in html
    assert "other operators" not in html
    older = changed(run, profile=None, latency=latency(1)).html()
    assert "the version of bnas that exported this run did not measure them" in older


def test_a_run_that_is_not_finished_says_nothing_of_times(supernet: SuperNetwork, tmp_path: Path) -> None:
    write_run(tmp_path, supernet, finished=False)
    html = Page(read_run(tmp_path)).html()
    assert "times by layer" not in html
    assert 'class="time"' not in html
