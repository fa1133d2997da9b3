"""The sliders of a report: what they can say, which sub-network they select, and that its command is the real one."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, browser
from run_cases import stamp, write_run

from bnas.page.explorer import Explorer, command, note
from bnas.page.members import Members
from bnas.page.page import Page, write_page
from bnas.page.recorded import Recorded, read_run
from bnas.run.results.commands import remedy
from bnas.runtime import SuperNetwork
from bnas.search import Objective

MOVE = """
const [id, value] = arguments, slider = document.getElementById(id);
slider.value = value;
slider.dispatchEvent(new Event("input"));
return [document.getElementById("picker").value, document.getElementById("ship").textContent];
"""


@pytest.fixture(scope="module")
def run(supernet: SuperNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a run")
    write_run(folder, supernet)
    write_page(folder)
    return folder


def explorer(recorded: Recorded) -> Explorer:
    found = Explorer.of(recorded, Members.of(recorded))
    assert found is not None
    return found


def test_sliders_cover_all_that_can_be_selected(run: Path) -> None:
    recorded = read_run(run)
    found = explorer(recorded)
    values = {f"e{one.index}": one.values for one in recorded.evaluations}
    assert {one.key for one in found.choices} == {member.key for member in Members.of(recorded).all}
    for one in found.choices:
        assert one.drop == pytest.approx(90 - 100 * values[one.key]["accuracy"])
        assert one.cost == pytest.approx(values[one.key]["macs"] / 1e3)
        assert found.drops.least <= one.drop <= found.drops.most
        assert found.costs.least <= one.cost <= found.costs.most
    assert found.drops.first >= min(one.drop for one in found.choices), "something is found at first"
    assert found.costs.first == found.costs.most


def test_latency_is_the_cost_where_the_search_knew_it(supernet: SuperNetwork, tmp_path: Path) -> None:
    asked = (Objective("accuracy", "max"), Objective("macs", "min"), Objective("latency", "min"))
    write_run(tmp_path, supernet, objectives=asked, extra="latency")
    assert explorer(read_run(tmp_path)).cost.name == "latency"


def test_there_are_no_sliders_where_there_is_nothing_to_choose(supernet: SuperNetwork, tmp_path: Path) -> None:
    write_run(tmp_path, supernet, finished=False)
    (tmp_path / "evaluations.jsonl").unlink()
    stamp(tmp_path)
    page = Page(read_run(tmp_path))
    assert page.explorer is None
    assert 'id="drop"' not in page.html()


def test_commands_name_winners_and_evaluations(run: Path) -> None:
    recorded = read_run(run)
    members = Members.of(recorded)
    best, other = members.all[0], members.front[0]
    words = shlex.split(command(recorded, members, best))
    assert words == ["bnas", "export", str(run), "--subnet", "best", "--onnx", "model.onnx"]
    assert shlex.split(command(recorded, members, other))[4] == other.key.removeprefix("e")


@pytest.mark.parametrize("key", ["job", "prune"])
def test_a_run_that_cannot_be_exported_has_no_command(key: str, supernet: SuperNetwork, tmp_path: Path) -> None:
    write_run(tmp_path, supernet, configuration={key: {}})
    recorded = read_run(tmp_path)
    members = Members.of(recorded)
    assert {command(recorded, members, one) for one in members.all} == {""}
    write_run(tmp_path / "begun", supernet, finished=False)
    begun = read_run(tmp_path / "begun")
    assert command(begun, Members.of(begun), Members.of(begun).front[0]) == ""


def test_what_was_not_fine_tuned_says_so(supernet: SuperNetwork, tmp_path: Path) -> None:
    write_run(tmp_path, supernet)
    plain = read_run(tmp_path)
    assert {note(plain, Members.of(plain), one) for one in Members.of(plain).all} == {""}
    data: Any = json.loads((tmp_path / "report.json").read_text())
    data["rows"][1]["test_accuracy_before"] = 0.5
    (tmp_path / "report.json").write_text(json.dumps(data))
    stamp(tmp_path)
    tuned = read_run(tmp_path)
    members = Members.of(tuned)
    assert note(tuned, members, members.all[0]) == ""
    assert "Only winners were fine-tuned" in note(tuned, members, members.front[0])


@pytest.mark.parametrize(
    ("runs", "told"), [(2, "Measure more often: {}=50"), (50, "Close other programs, then measure again: {}=200")]
)
def test_noisy_latencies_come_with_what_to_do(runs: int, told: str, supernet: SuperNetwork, tmp_path: Path) -> None:
    write_run(tmp_path, supernet)
    assert "measure again" not in Page(read_run(tmp_path)).html()
    data: Any = json.loads((tmp_path / "report.json").read_text())
    data["rows"][2]["latency"] |= {"unstable": "noisy: quartiles 20% of the median apart, limit 10%", "runs": runs}
    (tmp_path / "report.json").write_text(json.dumps(data))
    stamp(tmp_path)
    page = Page(read_run(tmp_path)).html()
    assert f"{told.format(f'<code>bnas export {tmp_path} --set latency.runs')}</code>" in page
    assert remedy(runs)[0] in page, "what the verdict of the run says too"


# As a browser does it.


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with browser() as one:
        yield one


def test_moving_a_slider_selects_what_it_asks_for(run: Path, window: Browser) -> None:
    window.size(1280, 900)
    window.open(run / "report.html")
    found = explorer(read_run(run))
    drop = round(found.drops.most / 2, 1)
    within = [one for one in found.choices if one.drop <= drop]
    cheapest = min(within, key=lambda one: one.cost)
    key, told = window.run(MOVE, "drop", drop)
    assert key == cheapest.key
    assert told.startswith("Lowest MACs within this loss of accuracy: ")
    assert shlex.split(window.text("#command"))[:3] == ["bnas", "export", str(run)]
    middle = sorted(one.cost for one in within)[len(within) // 2]
    cost = found.costs.least + found.costs.step * int((middle - found.costs.least) / found.costs.step + 1)
    key, told = window.run(MOVE, "cost", cost)
    best = min((one for one in within if one.cost <= cost), key=lambda one: one.drop)
    assert (key, told.partition(":")[0]) == (best.key, "Most accurate within this limit of MACs")
    window.run(MOVE, "cost", found.costs.least)
    assert (
        window.run(MOVE, "drop", found.drops.least)[1]
        == "No evaluated sub-network meets both limits: raise one of them."
    )
    assert window.faults() == []


def test_a_slider_says_what_it_stands_for(run: Path, window: Browser) -> None:
    """A browser adds steps to the least value: what is below the reference by whole steps is not exactly 0."""
    window.open(run / "report.html")
    window.run("document.getElementById('drop').min = -21.700000000000003;")
    window.run(MOVE, "drop", 0)
    assert window.run("return document.getElementById('drop').value") != "0"
    assert window.text("#drop-told") == "0 points of accuracy"
