"""The report of a run without a browser: what is written, from what, and what is told where something is missing."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from run_cases import small, stamp, write_run

from bnas.page import figures
from bnas.page.comparison import Comparison
from bnas.page.explorer import renewal
from bnas.page.members import Members
from bnas.page.page import Page, write_page
from bnas.page.plot import CURVES, WINNERS, Series
from bnas.page.recorded import ReportError, read_run
from bnas.page.words import quantity, told
from bnas.passes import Subnet
from bnas.run.files.mark import OutputError
from bnas.run.files.names import MARK
from bnas.runtime import SuperNetwork
from bnas.runtime.storage.files import WriteError
from bnas.search import EvaluationLog, Objective

HOSTILE = """</script><script>document.title='x'</script><img src=x onerror="document.title='x'"> $\\frac{$ `_&amp;'"""
LIMIT = 5_000_000
"""Bytes of a report, as promised."""


class Parts(HTMLParser):
    """What a browser makes of a page: its elements with their attributes, and all text by element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self.within: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the element."""
        self.elements.append((tag, dict(attrs)))
        self.within.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Leave it; some are never closed."""
        while self.within and self.within.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        """Note the text."""
        place = self.within[-1] if self.within else ""
        self.texts[place] = self.texts.get(place, "") + data

    def with_ids(self) -> set[str]:
        return {found["id"] or "" for _, found in self.elements if "id" in found}


def outside(parts: Parts) -> list[str]:
    """Everything that the page would fetch."""
    links = [one[key] or "" for _, one in parts.elements for key in ("src", "href", "srcset", "data") if key in one]
    return [link for link in links if not link.startswith(("data:", "#"))]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_finished_run_has_all_parts_in_one_file(run: Path) -> None:
    page = write_page(run)
    assert page == run / "report.html"
    parts = Parts(page.read_text(encoding="utf-8"))
    assert {
        "winners",
        "front",
        "architecture",
        "search",
        "training",
        "tuning",
        "machine",
        "configuration",
    } <= parts.with_ids()
    assert "missing" not in [found.get("class") for _, found in parts.elements]
    assert outside(parts) == []
    assert outside(Parts('<img src="https://example.org/a.png"><a href="#x">')) == ["https://example.org/a.png"]
    told = page.read_text(encoding="utf-8")
    for text in ("500 test samples", "400 validation samples", "ONNX Runtime", "best", "smallest", "torch 2"):
        assert text in told


def test_every_plot_is_a_picture_and_a_table_of_the_same_numbers(run: Path) -> None:
    write_page(run)
    folder = run / "report"
    names = {"front-macs", "hypervolume", "search-accuracy", "training-metric", "training-loss", "architecture"}
    pictures = {path.stem for path in folder.glob("*.png")}
    assert names <= pictures
    assert pictures | {"winners"} == {path.stem for path in folder.glob("*.csv")}
    for name in pictures:
        with Image.open(folder / f"{name}.png") as picture:
            pixels = np.asarray(picture.convert("RGB"))
        assert pixels[0, 0].tolist() == [255, 255, 255]
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 3
    found = list(EvaluationLog.read(run / "evaluations.jsonl"))
    rows = table(folder / "front-macs.csv")
    assert [float(row["accuracy"]) for row in rows] == [one.values["accuracy"] for one in found]
    front = {one.index for one in read_run(run).front}
    assert {int(row["evaluation"]) for row in rows if row["front"] == "1"} == front
    assert 0 < len(front) < len(found)
    volumes = [float(row["hypervolume"]) for row in table(folder / "hypervolume.csv")]
    assert len(volumes) == len(found)
    assert volumes == sorted(volumes)
    tuned = [(row["winner"], row["epoch"]) for row in table(folder / "tuning-loss.csv")]
    assert tuned == [*(("best", str(n)) for n in range(1, 6)), *(("smallest", str(n)) for n in range(1, 4))]
    epochs = table(folder / "training-metric.csv")
    assert [row["epoch"] for row in epochs] == ["1", "2", "3", "4", "5", "6"]
    assert float(epochs[2]["minimal"]) == 0.9 - 2 / 10


def test_the_architecture_table_has_the_sizes_of_the_extracted_winners(run: Path, supernet: SuperNetwork) -> None:
    write_page(run)
    rows = {row["layer"]: row for row in table(run / "report" / "architecture.csv")}
    assert rows["stem"]["original width"] == "16"
    assert rows["stem"]["original kernel"] == "5x5"
    winners = json.loads((run / "report.json").read_text())["rows"][1:]
    for winner in winners:
        subnet = Subnet.from_json(winner["subnet"])
        module = supernet.extract(subnet)
        for name, row in rows.items():
            width = row[f"{winner['name']} width"]
            if width == "skipped":
                assert row["block"] in subnet.skipped
                continue
            layer = module.get_submodule(name)
            assert int(width) == layer.weight.shape[0]
    assert rows["stem"]["best width"] != rows["stem"]["smallest width"] or winners[0]["subnet"] != winners[1]["subnet"]


def test_the_run_itself_is_not_changed(run: Path, tmp_path: Path) -> None:
    def content() -> dict[str, bytes]:
        return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}

    before = content()
    assert write_page(run, tmp_path / "elsewhere") == tmp_path / "elsewhere" / "report.html"
    assert content() == before
    write_page(run)
    assert {name: data for name, data in content().items() if not name.startswith("report.html")} != before
    assert {name: data for name, data in content().items() if name in before and name != MARK} == {
        name: data
        for name, data in before.items()
        if name != MARK  # which lists the report's files too
    }


UNFINISHED = (
    (("report.json",), {"front", "architecture", "search", "training"}, {"winners"}),
    (("report.json", "evaluations.jsonl"), {"architecture", "training"}, {"winners", "front", "search"}),
    (("report.json", "evaluations.jsonl", "search.json"), {"architecture", "training"}, {"winners", "front", "search"}),
    (
        ("report.json", "evaluations.jsonl", "search.json", "training/history.json"),
        {"architecture", "machine", "configuration"},
        {"winners", "front", "search", "training"},
    ),
    (
        (
            "report.json",
            "evaluations.jsonl",
            "search.json",
            "training/history.json",
            "architecture.json",
            "environment.json",
        ),
        {"machine", "configuration"},
        {"architecture", "training"},
    ),
    (("architecture.json",), {"winners", "front", "search", "training"}, {"architecture"}),
    (("search.json",), {"winners", "architecture", "training"}, {"search"}),
)


@pytest.mark.parametrize(("gone", "there", "absent"), UNFINISHED)
def test_an_unfinished_run_shows_what_is_there_and_says_what_is_missing(
    run: Path, gone: tuple[str, ...], there: set[str], absent: set[str]
) -> None:
    for name in gone:
        (run / name).unlink()
    text = write_page(run).read_text(encoding="utf-8")
    ids = Parts(text).with_ids()
    assert there <= ids
    assert not absent & ids
    for name in gone:
        assert f"<code>{name}</code>" in text
    assert ("not finished" in text) == ("report.json" in gone)


def test_a_line_that_is_being_written_is_left_out(run: Path) -> None:
    with (run / "evaluations.jsonl").open("a") as file:
        file.write('{"index": 40, "sub')
    (run / "report.json").unlink()
    write_page(run)
    assert len(table(run / "report" / "front-macs.csv")) == 40


def test_evaluations_that_failed_or_break_a_constraint_are_told(supernet: SuperNetwork, tmp_path: Path) -> None:
    write_run(tmp_path, supernet, constraints=("macs <= 60 %",))
    EvaluationLog(tmp_path / "evaluations.jsonl").record_failure(Subnet({"stem": 3}), "MemoryError", 0.1)
    page = Page(read_run(tmp_path))
    front = page.plots["front"][0]
    assert [one.label for one in front.series][:3] == ["evaluated", "violates a constraint", "Pareto front"]
    assert "1 failed" in front.caption
    assert "Constraints: macs <= " in front.caption
    bound = 0.6 * page.run.evaluations[0].values["macs"]
    factor = page.members.quantities["macs"].factor
    assert max(front.series[2].x) <= factor * bound
    assert min(front.series[1].x) > factor * bound


def test_evaluations_of_earlier_searches_are_told_apart(supernet: SuperNetwork, tmp_path: Path) -> None:
    """The terminal counts those of the last search; the plot shows all that are in the folder."""
    write_run(tmp_path, supernet, 12)
    (front,) = Page(read_run(tmp_path)).plots["front"]
    assert "earlier" not in front.caption
    noted = json.loads((tmp_path / "search.json").read_text())
    (tmp_path / "search.json").write_text(json.dumps({**noted, "evaluations": 8}))
    stamp(tmp_path)
    (front, *_) = Page(read_run(tmp_path)).plots["front"]
    assert "12 sub-networks were evaluated (8 of them were asked for by the last search, the" in front.caption


@pytest.mark.parametrize(
    ("objectives", "expected"),
    [
        ((Objective("accuracy", "max"),), ["front-macs"]),
        ((Objective("macs", "min"), Objective("accuracy", "max")), ["front-macs"]),
        (
            (Objective("accuracy", "max"), Objective("parameters", "min"), Objective("peak_memory", "min")),
            ["front-parameters", "front-peak_memory"],
        ),
        ((Objective("own", "max"), Objective("macs", "min")), ["front-macs"]),
    ],
)
def test_any_objectives_make_a_page(
    supernet: SuperNetwork, tmp_path: Path, objectives: tuple[Objective, ...], expected: list[str]
) -> None:
    write_run(tmp_path, supernet, objectives=objectives, extra="own")
    page = Page(read_run(tmp_path))
    assert [one.name for one in page.plots["front"]] == expected
    assert "</html>" in page.html()


def test_int8_that_failed_is_told_with_its_reason(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    report["rows"][1]["int8"] = {"test_accuracy": None, "latency": None, "failure": "no such operator <b>"}
    report["rows"][2]["int8"] = None
    (run / "report.json").write_text(json.dumps(report))
    stamp(run)
    text = write_page(run).read_text(encoding="utf-8")
    assert "no such operator &lt;b&gt;" in text
    assert text.count("not measured") == 4
    rows = table(run / "report" / "winners.csv")
    assert [row["int8_median_ms"] for row in rows] == ["0.5", "", ""]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{", "config.json is not a JSON file"),
        ("report.json", '{"rows": 1}', r"report.json: rows: Input should be a valid tuple"),
        ("search.json", "[]", "search.json: the file: "),
        ("environment.json", '[{"began": 3}]', r"environment.json: 0.began"),
        ("architecture.json", "{}", "architecture.json: must be an object of format 'bnas-architecture'"),
        ("training/history.json", '{"format": "x"}', "training/history.json: format"),
        ("evaluations.jsonl", "{}\n", "evaluations.jsonl:1: must be a file of format"),
    ],
)
def test_a_damaged_file_is_named(run: Path, name: str, content: str, message: str) -> None:
    (run / name).write_text(content)
    if name != "evaluations.jsonl":  # its lines have checksums of their own
        with pytest.raises(ReportError, match=f"{name} is damaged, or was changed after the run wrote it"):
            write_page(run)
    stamp(run)
    with pytest.raises(ReportError, match=message):
        write_page(run)
    assert not (run / "report.html").exists()


def test_names_of_users_are_text(tmp_path: Path) -> None:
    hostile = HOSTILE.replace(".", "")  # no module has a name with a dot
    supernet = small(hostile)
    folder = tmp_path / HOSTILE.replace("/", "|")
    write_run(
        folder,
        supernet,
        configuration={"model": HOSTILE},
        objectives=(Objective("accuracy", "max"), Objective(HOSTILE, "min")),
        extra=HOSTILE,
    )
    report = json.loads((folder / "report.json").read_text())
    report["machine"]["cpu"] = report["rows"][1]["name"] = HOSTILE
    (folder / "report.json").write_text(json.dumps(report))
    stamp(folder)
    text = write_page(folder).read_text(encoding="utf-8")
    parts = Parts(text)
    assert [tag for tag, _ in parts.elements].count("script") == 3
    assert not any(key.startswith("on") for _, found in parts.elements for key in found)
    assert all((found["src"] or "").startswith("data:") for tag, found in parts.elements if tag == "img")
    assert HOSTILE in parts.texts["h1"].replace("|", "/")
    assert HOSTILE in json.loads(parts.texts["pre"])["model"]
    spoiled = Parts(text.replace("</header>", HOSTILE))
    assert [tag for tag, _ in spoiled.elements].count("script") > 3
    assert any("onerror" in found for _, found in spoiled.elements)


def test_three_thousand_evaluations_are_small_enough(supernet: SuperNetwork, tmp_path: Path) -> None:
    write_run(tmp_path, supernet, 3000, epochs=60)
    assert write_page(tmp_path).stat().st_size < LIMIT
    assert len(read_run(tmp_path).evaluations) == 3000


def bnas(*arguments: object, cwd: Path, before: str = "") -> subprocess.CompletedProcess[str]:
    script = f"{before}\nfrom bnas.cli.app import main; main()"
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_the_command_writes_it_without_loading_torch(run: Path, tmp_path: Path) -> None:
    watch = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules))"
    done = bnas("report", run, cwd=tmp_path, before=watch)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"The report is in {run / 'report.html'}", "False"]
    assert bnas("report", run, "-o", "here", cwd=tmp_path).returncode == 0
    assert (tmp_path / "here" / "report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "before", "message"),
    [
        (("report", "nowhere"), "", "nowhere is not the folder of a run: config.json is missing"),
        (("report", "unlisted"), "", "unlisted is not the folder of a run: run.json is missing"),
        (("report", "run"), "import sys; sys.modules['bokeh'] = None", "pip install 'bnas[report]'"),
        (("report", "run"), "import sys; sys.modules['jinja2'] = None", "pip install 'bnas[report]'"),
        (("report", "run"), "import sys; sys.modules['matplotlib'] = None", "pip install 'bnas[report]'"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(
    run: Path, tmp_path: Path, arguments: tuple[str, ...], before: str, message: str
) -> None:
    (tmp_path / "unlisted").mkdir()
    (tmp_path / "unlisted" / "config.json").write_text("{}")
    done = bnas(*arguments, cwd=tmp_path, before=before)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (run / "report.html").exists()


def test_a_folder_that_cannot_be_written_to_is_told(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match=r"file/report/.* cannot be written: Not a directory; .*another folder"):
        write_page(run, tmp_path / "file")


def test_files_of_others_are_not_replaced(run: Path, tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "winners.csv").write_text("mine")
    with pytest.raises(ReportError, match=r"winners\.csv exists, but bnas did not write it.*--output"):
        write_page(run, tmp_path)
    (tmp_path / "report" / "winners.csv").unlink()
    for _ in range(2):
        assert write_page(run, tmp_path) == tmp_path / "report.html"
    (run / "report").mkdir()
    (run / "report" / "winners.csv").write_text("mine")
    with pytest.raises(OutputError, match=r"winners\.csv exists, but the run did not write it; move it"):
        write_page(run)
    assert (run / "report" / "winners.csv").read_text() == "mine"


def test_a_sub_network_with_two_names_is_one(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    report["rows"][2]["subnet"] = report["rows"][1]["subnet"]
    (run / "report.json").write_text(json.dumps(report))
    stamp(run)
    page = Page(read_run(run))
    assert list(page.members.winners) == ["best, smallest"]
    assert "best, smallest" in [one.label for one in page.plots["front"][0].series]


def test_results_that_are_older_than_the_last_search_are_marked(run: Path) -> None:
    """Other targets, searched for in a finished run: until its export the table shows the former winners."""
    rows = json.loads((run / "report.json").read_text())["rows"][1:]
    assert "older than the last search" not in write_page(run).read_text()
    for winners, outdated in ((rows, False), (rows[:1], True), ([rows[0], {**rows[1], "name": "third"}], True)):
        chosen = {one["name"]: {"subnet": one["subnet"], "values": {}} for one in winners}
        (run / "winners.json").write_text(json.dumps({"format": 1, "winners": chosen}))
        stamp(run)
        assert ("older than the last search" in write_page(run).read_text()) is outdated
        assert ("bnas export" in " ".join(renewal(read_run(run)))) is outdated
        found = read_run(run)
        assert any("searched again" in one for one in Comparison((found, found)).warnings()) is outdated


@pytest.mark.parametrize(
    ("name", "value", "most", "shown", "axis"),
    [
        ("accuracy", 0.98765, 1.0, "98.77 %", "accuracy (%)"),
        ("accuracy", 37.0, 40.0, "37.0", "accuracy"),
        ("macs", 1_234_567, 9e6, "1.23 M", "MACs (millions)"),
        ("macs", 234_567, 9e9, "0.00 G", "MACs (billions)"),
        ("peak_memory", 20480, 20480, "20.5 kB", "peak memory (kB)"),
        ("latency", 0.25, 1.0, "0.25 ms", "latency (ms)"),
        ("latency", 0.009536, 0.0102, "0.00954 ms", "latency (ms)"),
        ("latency", 0.0, 0.0, "0.00 ms", "latency (ms)"),
        ("own", -3.5, 4.0, "-3.5", "own"),
        ("own", 0.0, 0.0, "0", "own"),
    ],
)
def test_values_are_shown_with_their_units(name: str, value: float, most: float, shown: str, axis: str) -> None:
    found = quantity(name, [value, most])
    assert (found.show(value), found.axis) == (shown, axis)


def test_a_choice_in_words() -> None:
    maximal = Subnet({"a": 8, "b": 4}, frozenset(), {"c": 5})
    assert told(maximal, maximal) == "everything is kept"
    subnet = Subnet({"a": 4, "b": 2}, frozenset({"y", "x"}), {"c": 3})
    assert told(subnet, maximal).splitlines() == [
        "skipped blocks (2): x, y",
        "smaller widths (2 of 2): a 4 of 8, b 2 of 4",
        "smaller kernels (1 of 1): c 3 of 5",
    ]
    assert told(subnet, maximal, 1).splitlines()[:2] == [
        "skipped blocks (2): x and 1 more",
        "smaller widths (2 of 2): a 4 of 8 and 1 more",
    ]


def test_winners_and_front_can_be_selected_once_each(run: Path) -> None:
    recorded = read_run(run)
    members = Members.of(recorded)
    keys = [member.key for member in members.all]
    assert len(set(keys)) == len(keys)
    assert {f"e{one.index}" for one in recorded.front} <= set(keys)
    assert list(members.winners) == ["best", "smallest"]


DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)
PROTANOPIA = np.array(
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
)
"""On linear colours; Machado, Oliveira and Fernandes 2009, at full severity."""


def closest(colours: list[str], sight: Any) -> float:
    """The least distance of two colours to an eye, from 0 to 1."""
    values = np.array([[int(one[k : k + 2], 16) / 255 for k in (1, 3, 5)] for one in colours])
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ sight.T, 0, 1)
    shown = np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)
    distances = np.linalg.norm(shown[:, None] - shown[None], axis=2)
    return float(distances[~np.eye(len(colours), dtype=bool)].min() / np.sqrt(3))


@pytest.mark.parametrize("sight", [np.eye(3), DEUTERANOPIA, PROTANOPIA], ids=["full", "deuteranopia", "protanopia"])
@pytest.mark.parametrize("styles", [[c for c, *_ in CURVES], [c for c, *_ in WINNERS]], ids=["curves", "winners"])
def test_colours_differ_to_every_eye(styles: list[str], sight: Any) -> None:
    assert closest(styles, sight) > 0.07
    assert closest(["#d62728", "#7f7f00"], DEUTERANOPIA) < 0.2 < closest(["#d62728", "#7f7f00"], np.eye(3))


def test_marks_and_dashes_differ_too() -> None:
    assert len({(marker, dash) for _, marker, dash in CURVES}) == len(CURVES)
    assert len({marker for _, marker in WINNERS}) == len(WINNERS)


def test_a_csv_has_names_as_they_are(run: Path) -> None:
    write_page(run)
    text = (run / "report" / "winners.csv").read_text()
    assert next(csv.reader(io.StringIO(text)))[0] == "network"


def test_a_selected_point_of_the_front_does_not_cut_its_line() -> None:
    """Bokeh draws what is selected apart from the rest: a line through both would have a gap."""
    models = pytest.importorskip("bokeh.models")
    drawn = models.Plot(x_range=models.Range1d(0, 3), y_range=models.Range1d(0, 3))
    series = Series(
        "front", [0.0, 1.0, 2.0], [0.0, 1.0, 2.0], "step", "#0072b2", texts=["a", "b", "c"], keys=["a", "b", "c"]
    )
    points = figures._draw(drawn, series, "front:0")
    (line,) = [one for one in drawn.renderers if isinstance(one.glyph, models.Step)]
    assert points.data_source.name == "front:0"
    assert line.data_source is not points.data_source
    assert list(line.data_source.data["x"]) == [0.0, 1.0, 2.0]
