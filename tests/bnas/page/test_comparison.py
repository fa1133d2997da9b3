"""Two runs on one page: both fronts in one picture, winners side by side, what differs; also as a browser sees it."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, browser
from run_cases import latency, stamp, write_run

from bnas.cli.app import app
from bnas.page import differences
from bnas.page.comparison import Comparison, write_comparison
from bnas.page.progress import curves
from bnas.page.recorded import ReportError, read_run
from bnas.runtime import SuperNetwork
from bnas.search import Objective

HOSTILE = "</script><script>caught=1</script><img src=x onerror='caught=1'>"


@pytest.fixture(scope="module")
def pair(supernet: SuperNetwork, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two finished runs, not to be changed."""
    folder = tmp_path_factory.mktemp("pair")
    for name, evaluations in (("slow", 30), ("fast", 12)):
        settings = {"model": "net.py:Net", "search": {"num_evals": evaluations, "seed": 0}, "log_dir": name}
        settings["stages"] = [{"epochs": 2}, {"epochs": evaluations, "bn_adapt": False}]
        settings["pin"] = ["a"] * (evaluations // 12)
        write_run(folder / name, supernet, evaluations, configuration=settings)
    return folder / "slow", folder / "fast"


def compared(*folders: Path) -> Comparison:
    first, second = map(read_run, folders)
    return Comparison((first, second))


def changed(run: Path, supernet: SuperNetwork, change: Callable[[Any], None], name: str = "report.json") -> Path:
    """A run in which one of its files says something else."""
    write_run(run, supernet, 12)
    data = json.loads((run / name).read_text())
    change(data)
    (run / name).write_text(json.dumps(data))
    stamp(run)
    return run


def test_both_fronts_are_in_one_picture_in_one_unit(pair: tuple[Path, Path]) -> None:
    (plot,) = compared(*pair).plots
    assert [one.label for one in plot.series] == [
        "A: slow: front",
        "A: slow: winners",
        "B: fast: front",
        "B: fast: winners",
    ]
    assert len({(one.colour, one.marker) for one in plot.series}) == 4
    for series, folder in ((plot.series[0], pair[0]), (plot.series[2], pair[1])):
        front = read_run(folder).front
        assert list(series.x) == pytest.approx([one.values["macs"] / 1e3 for one in front])
        assert list(series.y) == pytest.approx([100 * one.values["accuracy"] for one in front])
        assert f"evaluation {front[0].index}\n" in series.texts[0]
    assert not any(one.keys for one in plot.series), "nothing is to be selected on this page"


def test_winners_stand_side_by_side_with_what_differs_from_the_first_run(pair: tuple[Path, Path]) -> None:
    comparison = compared(*pair)
    assert list(comparison.winners) == ["original", "best", "smallest"]
    a, b = ({row.name: row for row in run.results.rows} for run in comparison.runs if run.results)
    for name, (left, right) in comparison.winners.items():
        assert left.cells[0].text == f"{100 * a[name].test_accuracy:.2f} %"
        assert right.cells[0].text == f"{100 * b[name].test_accuracy:.2f} %"
        assert left.versus == {}
        points = 100 * (b[name].test_accuracy - a[name].test_accuracy)
        assert right.versus["test accuracy"] == f"{points:+.2f} points against A"
        assert right.versus["latency fp32"] == "as A"
        more = b[name].macs / a[name].macs
        assert right.versus["MACs"] == ("as A" if round(more, 2) == 1 else f"{more:.2f}x more than A")


def test_factors_go_both_ways(supernet: SuperNetwork, pair: tuple[Path, Path], tmp_path: Path) -> None:
    def quicker(data: Any) -> None:
        data["rows"][1]["latency"]["median_ms"] /= 2
        data["rows"][2]["latency"]["median_ms"] *= 3
        data["rows"][1]["int8"] = None
        data["rows"][2]["parameters"] *= 4

    other = changed(tmp_path / "other", supernet, quicker)
    winners = compared(pair[0], other).winners
    assert winners["best"][1].versus["latency fp32"] == "2.00x faster than A"
    assert winners["smallest"][1].versus["latency fp32"] == "3.00x slower than A"
    assert re.fullmatch(r"\d\.\d\dx more than A", winners["smallest"][1].versus["parameters"])
    assert "int8 accuracy" not in winners["best"][1].versus


def test_latencies_are_compared_as_shares_of_the_original_where_the_runs_have_one_model(
    supernet: SuperNetwork, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """During run B the machine was half as fast: nothing of that is a difference of the networks."""

    def busy(data: Any) -> None:
        for row, ratio in zip(data["rows"], (1.0, 0.5, 0.25), strict=True):
            row["latency"] |= {"median_ms": 8 * ratio, "ratio": ratio}

    def quiet(data: Any) -> None:
        for row, ratio in zip(data["rows"], (1.0, 0.5, 0.5), strict=True):
            row["latency"] |= {"median_ms": 4 * ratio, "ratio": ratio}

    runs = changed(tmp_path / "quiet", supernet, quiet), changed(tmp_path / "busy", supernet, busy)
    told = {name: sides[1].versus["latency fp32"] for name, sides in compared(*runs).winners.items()}
    assert told == {"original": "as A", "best": "as A", "smallest": "2.00x faster than A"}


def test_a_winner_of_one_run_only_is_shown(supernet: SuperNetwork, pair: tuple[Path, Path], tmp_path: Path) -> None:
    def named(data: Any) -> None:
        data["rows"][2]["name"] = "third"
        data["rows"][2]["target"] = {"bound": "macs <= 33 %", "missed": True}

    page = write_comparison(pair[0], changed(tmp_path / "other", supernet, named), tmp_path / "out").read_text()
    assert page.count("not in this run") == 2
    assert "macs &lt;= 33 %: missed, the nearest one" in page


def further(data: Any, name: str, factor: float, provider: str = "OpenVINO") -> None:
    """Give each network a further latency: so many times its first one."""
    for row in data["rows"]:
        own = latency(factor * row["latency"]["median_ms"]) | {"provider": provider}
        row.setdefault("latencies", {})[name] = own


def test_further_latencies_stand_side_by_side_too(supernet: SuperNetwork, tmp_path: Path) -> None:
    def both(data: Any) -> None:
        further(data, "server", 3)
        further(data, "phone", 5)

    def other(data: Any) -> None:
        further(data, "server", 1.5)
        further(data, "watch", 9)

    comparison = compared(changed(tmp_path / "a", supernet, both), changed(tmp_path / "b", supernet, other))
    first, second = comparison.winners["best"]
    assert comparison.columns[-3:] == ["server", "phone", "watch"]
    assert [cell.column for cell in first.cells] == [cell.column for cell in second.cells] == comparison.columns
    assert [cell.text for cell in first.cells[-3:]] == ["1.500 ms", "2.500 ms", "not measured"]
    assert [cell.text for cell in second.cells[-3:]] == ["0.750 ms", "not measured", "4.500 ms"]
    assert second.versus["server"] == "2.00x faster than A"
    assert not {"phone", "watch"} & second.versus.keys(), "one run alone has them"
    told = comparison.measured_on()
    assert [("phone: on " in one, "watch: on " in one) for one in told] == [
        (True, False),
        (False, True),
    ]
    assert list(comparison.warnings()) == []


def test_a_latency_of_one_name_on_two_targets_is_told(supernet: SuperNetwork, tmp_path: Path) -> None:
    one = changed(tmp_path / "a", supernet, lambda data: further(data, "server", 3))
    other = changed(tmp_path / "b", supernet, lambda data: further(data, "server", 3, "LiteRT"))
    (told,) = compared(one, other).warnings()
    assert "server: provider OpenVINO and LiteRT" in told


def test_settings_that_differ_are_listed_and_no_others(pair: tuple[Path, Path]) -> None:
    assert compared(*pair).settings() == [
        ("search.num_evals", "30", "12"),
        ("stages[1].epochs", "30", "12"),
        ("pin", '["a", "a"]', '["a"]'),
    ]
    facts = {name: values for name, *values in compared(*pair).facts()}
    assert facts["sub-networks evaluated"] == ["30", "12"]
    assert facts["epochs of the super-network"] == ["6", "6"]


def test_a_pruned_network_has_no_super_network(supernet: SuperNetwork, tmp_path: Path) -> None:
    """The epochs of `bnas prune` are those of its fine-tuning."""

    def pruned(data: Any) -> None:
        data["prune"] = {"to": "macs <= 50 %"}

    folder = changed(tmp_path / "pruned", supernet, pruned, "config.json")
    facts = dict(differences.facts(read_run(folder)))
    assert facts["epochs of the super-network"] == "none: pruned"
    assert facts["epochs of fine-tuning"] == "6"
    history = json.loads((folder / "training/history.json").read_text())
    (folder / "training/history.json").write_text(
        json.dumps({**history, "epochs": [{**one, "metrics": {"maximal": 0.9}} for one in history["epochs"]]})
    )
    stamp(folder)
    plot = next(one for one in curves(read_run(folder)) if one.name == "training-metric")
    assert plot.title == "Training: accuracy"
    assert "random" not in plot.caption


def test_settings_that_pruning_does_not_use_are_not_compared(
    supernet: SuperNetwork, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """The file of `bnas prune` is that of `bnas run`, with stages and a search that it never looks at."""

    def pruned(data: Any) -> None:
        data.update(json.loads((pair[1] / "config.json").read_text()), prune={"to": "macs <= 50 %"})

    folder = changed(tmp_path / "pruned", supernet, pruned, "config.json")
    found = {place: values for place, *values in compared(pair[0], folder).settings()}
    assert found["search.num_evals"] == ["30", "not used"]
    assert found["stages[1].epochs"] == ["30", "not used"]
    assert "not used" not in found["pin"], "which layers may change is used"
    whole = compared(*pair).settings()
    assert not any("not used" in values for _, *values in whole)
    both = {place for place, *_ in compared(folder, folder).settings()}
    assert not both


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda data: data["machine"].update(cpu="abacus"), r"measured differently \(other CPUs\): compare factors"),
        (lambda data: data["rows"][0]["latency"].update(threads=4), r"threads 1 and 4"),
        (lambda data: data["rows"][0]["latency"].update(median_ms=3.0), r"took 1.000 and 3.000 ms"),
    ],
)
def test_what_cannot_be_compared_is_said(
    change: Callable[[Any], None], told: str, supernet: SuperNetwork, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    assert list(compared(*pair).warnings()) == []
    (found,) = compared(pair[0], changed(tmp_path / "other", supernet, change)).warnings()
    assert re.search(told, found)


def test_other_models_and_data_are_said(supernet: SuperNetwork, pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = changed(tmp_path / "other", supernet, lambda data: data.update(model="Other"), "architecture.json")
    (other / "data.json").write_text('{"place": "elsewhere"}')
    stamp(other)
    found = list(compared(pair[0], other).warnings())
    assert found[0].startswith("The models differ: ")
    assert found[1].startswith("The data or the hold-out differ")


def test_runs_that_are_not_finished_are_compared_as_far_as_they_came(
    supernet: SuperNetwork, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    write_run(tmp_path / "begun", supernet, 8, finished=False)
    comparison = compared(pair[0], tmp_path / "begun")
    assert any("B: begun is not finished" in one for one in comparison.warnings())
    assert [one.label for one in comparison.plots[0].series][-1] == "B: begun: front"
    (tmp_path / "begun" / "search.json").unlink()
    stamp(tmp_path / "begun")
    bare = compared(tmp_path / "begun", tmp_path / "begun")
    assert (bare.plots, bare.winners) == ([], {})
    assert "Settings that differ" in bare.html()[0]


def test_searches_for_other_things_share_what_both_measured(supernet: SuperNetwork, tmp_path: Path) -> None:
    asked = (Objective("accuracy", "max"), Objective("energy", "min"))
    write_run(tmp_path / "a", supernet, 10, objectives=asked, extra="energy")
    write_run(tmp_path / "b", supernet, 10)
    assert [plot.name for plot in compared(tmp_path / "a", tmp_path / "b").plots] == ["front-macs"]


def test_files_are_written_beside_the_page_and_no_file_of_others_is_replaced(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = write_comparison(*pair)
    assert page == Path("comparison.html")
    with (tmp_path / "comparison" / "front-macs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows].count("A") == len(read_run(pair[0]).front)
    assert (tmp_path / "comparison" / "front-macs.png").read_bytes().startswith(b"\x89PNG")
    write_comparison(*pair)  # one of bnas's own
    page.write_text("mine")
    with pytest.raises(ReportError, match="exists, but bnas did not write it"):
        write_comparison(*pair)
    with pytest.raises(ReportError, match="are the same run; give two"):
        write_comparison(pair[0], pair[0])
    with pytest.raises(ReportError, match="is the folder of a run; choose another folder"):
        write_comparison(*pair, pair[0])
    with pytest.raises(ReportError, match="is not the folder of a run"):
        write_comparison(pair[0], tmp_path)


def test_the_command_compares_two_folders(pair: tuple[Path, Path], tmp_path: Path) -> None:
    from typer.testing import CliRunner

    found = CliRunner().invoke(app, ["report", *map(str, pair), "-o", str(tmp_path / "out")])
    assert found.exit_code == 0, found.output
    assert f"The comparison is in {tmp_path / 'out' / 'comparison.html'}" in found.stdout.replace("\n", "")


# As a browser sees it.


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with browser() as one:
        yield one


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height", "mobile"), [(1280, 900, False), (390, 844, True)], ids=["wide", "phone"])
def test_a_browser_shows_it_on_every_screen(
    scheme: str, width: int, height: int, mobile: bool, window: Browser, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    page = write_comparison(*pair, tmp_path)
    window.send("Emulation.setEmulatedMedia", media="", features=[{"name": "prefers-color-scheme", "value": scheme}])
    window.size(width, height, mobile=mobile)
    window.open(page)
    assert window.faults() == []
    assert window.run("return document.documentElement.scrollWidth") <= width
    assert window.run("return document.querySelectorAll('.live canvas, .live > *').length") > 0
    paper, text = window.run(
        "const style = getComputedStyle(document.body); return [style.backgroundColor, style.color]"
    )
    light, dark = "rgb(255, 255, 255)", "rgb(22, 25, 28)"
    assert paper == (light if scheme == "light" else dark)
    assert text != paper


def test_names_are_text_whatever_they_are(
    supernet: SuperNetwork, pair: tuple[Path, Path], window: Browser, tmp_path: Path
) -> None:
    def named(data: Any) -> None:
        data["rows"][1]["name"] = HOSTILE

    other = changed(tmp_path / "other", supernet, named)
    (other / "config.json").write_text(json.dumps({HOSTILE: HOSTILE}))
    stamp(other)
    window.open(write_comparison(pair[0], other, tmp_path / "out"))
    assert window.faults() == []
    assert window.run("return window.caught ?? 0") == 0
    assert window.run("return document.querySelectorAll('[onerror]').length") == 0
