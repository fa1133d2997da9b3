"""The report in a real browser: it draws, tells, selects, prints, fits a phone, and asks nobody for anything."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, browser
from pypdf import PdfReader
from run_cases import small, stamp, write_run

from bnas.page.page import Page, write_page
from bnas.page.recorded import read_run
from bnas.passes import Subnet
from bnas.runtime import SuperNetwork
from bnas.search import Evaluation, Objective

HOSTILE = "</script><script>caught=1</script><img src=x onerror='caught=1'>$$x$$"  # no dot: a module may be called so
DRAWN = """
const found = {};
const walk = (root, name) => root.querySelectorAll("*").forEach((one) => {
  if (one.shadowRoot) walk(one.shadowRoot, name);
  if (one.tagName === "CANVAS" && one.width) {
    const pixels = one.getContext("2d").getImageData(0, 0, one.width, one.height).data;
    found[name] = Math.max(found[name] ?? 0, new Set(new Uint32Array(pixels.buffer)).size);
  }
});
document.querySelectorAll(".live").forEach((one) => walk(one, one.id));
return found;
"""
LAYERS = """
return [...document.querySelectorAll(".layers tbody tr")].map((row) => [
  row.querySelector("th").firstChild.textContent.trim(),
  row.querySelector(".chosen b").textContent,
  row.querySelector(".chosen .kernel").textContent,
  row.querySelector(".chosen i").getBoundingClientRect().width,
]);
"""
INJECTED = """
const inside = (root) => [...root.querySelectorAll("*")].flatMap(
  (one) => [one, ...(one.shadowRoot ? inside(one.shadowRoot) : [])]
);
const foreign = (one) => one.getAttribute("onerror") || one.getAttribute("src") === "x";
return [window.caught ?? 0, inside(document).filter(foreign).length];
"""


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with browser() as one:
        yield one


@pytest.fixture(scope="module")
def page(supernet: SuperNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_run(folder, supernet)
    return write_page(folder)


@pytest.fixture
def opened(window: Browser, page: Path) -> Browser:
    window.size(1280, 900)
    window.open(page)
    return window


def until(window: Browser, script: str, *arguments: Any) -> Any:
    """What the script gives as soon as that is true."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(window.driver, 10, 0.02).until(lambda _: window.run(script, *arguments))


def lonely(page: Path) -> list[Evaluation]:
    """Points of the front that are no winners, those first that are far from all other points."""
    run = read_run(page.parent)
    taken = {member.key for member in Page(run).members.winners.values()}

    def distance(one: Evaluation) -> float:
        most = run.evaluations[0].values["macs"]
        return min(
            abs(one.values["macs"] - other.values["macs"]) / most
            + abs(one.values["accuracy"] - other.values["accuracy"])
            for other in run.evaluations
            if other is not one
        )

    return sorted((one for one in run.front if f"e{one.index}" not in taken), key=distance, reverse=True)


def click_until_chosen(window: Browser, page: Path, one: Evaluation, most: int = 5) -> None:
    """Click a point as a person does: again where the page was still moving or slow."""
    for _ in range(most):
        window.click(*place(window, page, one))
        for _ in range(100):
            if f"(evaluation {one.index})" in window.text("#chosen-label"):
                return
            time.sleep(0.02)
    raise AssertionError(f"evaluation {one.index} cannot be selected: {window.text('#chosen-label')} is")


def place(window: Browser, page: Path, one: Evaluation) -> tuple[float, float]:
    factor = Page(read_run(page.parent)).members.quantities["macs"].factor
    return window.place("front-macs", factor * one.values["macs"], 100 * one.values["accuracy"])


def expected(supernet: SuperNetwork, subnet: Subnet, names: list[str]) -> list[tuple[str, str]]:
    """Width and kernel of each layer, as they really are in the extracted module."""
    module, found = supernet.extract(subnet), []
    modules = dict(module.named_modules())
    for name in names:
        layer = modules.get(name)
        if layer is None:
            found.append(("skipped", ""))
            continue
        kernel = "x".join(map(str, layer.weight.shape[2:]))
        found.append((str(layer.weight.shape[0]), kernel))
    return found


def test_everything_is_drawn_without_an_error_or_a_request(opened: Browser) -> None:
    drawn = opened.run(DRAWN)
    names = {
        "front-macs",
        "hypervolume",
        "search-accuracy",
        "training-metric",
        "training-loss",
        "training-learning-rate",
        "tuning-loss",
    }
    assert set(drawn) == {f"plot-{name}" for name in names}
    assert min(drawn.values()) > 10  # different colours
    assert opened.faults() == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("</header>", '</header><img src="http://example.org/a.png">'),
        ("</header>", "</header><script>window.caught=1</script>"),
        ("</header>", '</header><img src="data:," onerror="window.caught=1">'),
        ('const picker = document.getElementById("picker")', "const picker = nothing"),
        ("default-src", "connect-src"),
    ],
    ids=["request", "script", "handler", "error", "request-that-the-policy-allows"],
)
def test_what_goes_wrong_is_noticed(window: Browser, page: Path, tmp_path: Path, old: str, new: str) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.count(old) >= 1
    changed = text.replace(old, new, 1)
    if "connect-src" in new:
        changed = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text).replace(
            "</header>", '</header><img src="http://example.org/a.png">'
        )
    (tmp_path / "spoiled.html").write_text(changed, encoding="utf-8")
    window.open(tmp_path / "spoiled.html")
    until(window, "return document.readyState === 'complete'")
    assert window.faults()


def test_hovering_tells_the_choice(opened: Browser, page: Path) -> None:
    one = lonely(page)[0]
    assert opened.told() == ""
    left, top = place(opened, page, one)
    opened.move(left, top)
    until(opened, "return true")
    for _ in range(50):
        if opened.told():
            break
        until(opened, "return new Promise((done) => setTimeout(() => done(true), 50))")
    assert f"evaluation {one.index}\n" in opened.told()
    assert f"accuracy {100 * one.values['accuracy']:.2f} %" in opened.told()
    assert ("skipped blocks" in opened.told()) == bool(one.subnet.skipped)


def test_clicking_selects_and_redraws_the_layers(opened: Browser, page: Path, supernet: SuperNetwork) -> None:
    first, second = lonely(page)[:2]
    for one, other in ((first, second), (second, first)):
        click_until_chosen(opened, page, one)
        rows = opened.run(LAYERS)
        names = [name for name, *_ in rows]
        shown = [(width, kernel) for _, width, kernel, _ in rows]
        assert shown == expected(supernet, one.subnet, names)
        assert shown != expected(supernet, other.subnet, names)
        widths = [length / int(width) for _, width, _, length in rows if width != "skipped" and int(width) >= 4]
        assert max(widths) == pytest.approx(min(widths), rel=0.02)  # bars are as long as layers are wide
        assert all(length == 0 for _, width, _, length in rows if width == "skipped")
        assert opened.run("return document.getElementById('picker').value") == f"e{one.index}"
    opened.click(*(position + shift for position, shift in zip(place(opened, page, first), (150, 60), strict=True)))
    assert f"(evaluation {second.index})" in opened.text("#chosen-label")
    assert opened.faults() == []


def test_the_list_selects_too_and_marks_the_point(opened: Browser, page: Path) -> None:
    one = lonely(page)[0]
    opened.run(
        "const list = document.getElementById('picker'); list.value = arguments[0];"
        "list.dispatchEvent(new Event('change'));",
        f"e{one.index}",
    )
    assert f"(evaluation {one.index})" in opened.text("#chosen-label")
    marked = """
    const source = Bokeh.documents.map((one) => one.get_model_by_name("front-macs:1")).find((one) => one);
    return source.selected.indices.map((at) => source.data.key[at]);
    """
    assert opened.run(marked) == [f"e{one.index}"]
    assert opened.run("return document.getElementById('values').textContent").count(str(one.index)) >= 1


def test_names_of_users_cannot_run_anything(window: Browser, tmp_path: Path) -> None:
    folder = tmp_path / HOSTILE.replace("/", "|")
    names = {"objectives": (Objective("accuracy", "max"), Objective(HOSTILE, "min")), "extra": HOSTILE}
    write_run(folder, small(HOSTILE), configuration={HOSTILE: HOSTILE}, **names)
    report = json.loads((folder / "report.json").read_text())
    report["rows"][1]["name"] = report["machine"]["cpu"] = HOSTILE
    report["rows"][1]["int8"] = {"failure": HOSTILE}
    (folder / "report.json").write_text(json.dumps(report))
    history = json.loads((folder / "training" / "history.json").read_text())
    history["epochs"] = [{**one, "metrics": {HOSTILE: 0.5}} for one in history["epochs"]]
    (folder / "training" / "history.json").write_text(json.dumps({**history, "metric": HOSTILE}))
    stamp(folder)
    page = write_page(folder)
    window.open(page)
    window.run(SELECT_ALL)
    points = """
    const source = Bokeh.documents.map((one) => one.get_model_by_name(arguments[0])).find((one) => one);
    return [source.data.x[0], source.data.y[0]];
    """
    name = Page(read_run(folder)).plots["front"][0].name
    across, upwards = window.run(points, f"{name}:1")
    window.move(*window.place(name, across, upwards))
    for _ in range(50):
        if window.told():
            break
        until(window, "return new Promise((done) => setTimeout(() => done(true), 50))")
    assert HOSTILE in window.told()
    assert window.run(INJECTED) == [0, 0]
    assert window.faults() == []
    spoiled = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"))
    (tmp_path / "spoiled.html").write_text(spoiled.replace("</header>", HOSTILE), encoding="utf-8")
    window.open(tmp_path / "spoiled.html")
    caught, inside = window.run(INJECTED)
    assert caught
    assert inside


SELECT_ALL = """
const list = document.getElementById("picker");
[...list.options].forEach((one) => { list.value = one.value; list.dispatchEvent(new Event("change")); });
"""
SMALL_TEXT = """
const inside = (root) => [...root.querySelectorAll("*")].flatMap(
  (one) => [one, ...(one.shadowRoot ? inside(one.shadowRoot) : [])]
);
const written = (one) => [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
return inside(document.body).filter((one) => one.offsetParent && written(one))
  .map((one) => parseFloat(getComputedStyle(one).fontSize)).reduce((a, b) => Math.min(a, b), 99);
"""
WIDE = """
const width = document.documentElement.clientWidth;
const beyond = (one) => one.offsetParent && one.getBoundingClientRect().right > width + 1;
return [...document.querySelectorAll("body *")].filter(beyond)
  .map((one) => one.tagName + "." + one.className);
"""


def test_it_fits_a_phone(window: Browser, page: Path, tmp_path: Path) -> None:
    try:
        window.size(390, 844, mobile=True)
        window.open(page)
        assert window.run("return document.documentElement.scrollWidth") == 390
        assert window.run(WIDE) == []
        assert window.run(SMALL_TEXT) >= 10
        assert min(window.run(DRAWN).values()) > 10
        assert window.faults() == []
        broken = (
            page.read_text(encoding="utf-8")
            .replace(".winners thead { display: none; }", "")
            .replace(
                ".winners, .winners tbody, .winners tr, .winners td { display: block; }",
                ".winners { white-space: nowrap; }",
            )
        )
        (tmp_path / "broken.html").write_text(broken, encoding="utf-8")
        window.open(tmp_path / "broken.html")
        assert window.run(WIDE)
    finally:
        window.size(1280, 900)


def test_it_prints_with_pictures_instead_of_live_plots(opened: Browser, page: Path, tmp_path: Path) -> None:
    opened.paper(tmp_path / "page.pdf")
    printed = PdfReader(io.BytesIO((tmp_path / "page.pdf").read_bytes()))
    text = "\n".join(one.extract_text() for one in printed.pages)
    assert 2 <= len(printed.pages) <= 12
    for words in ("Winners", "Architecture", "Machine and versions", "made up"):  # the last is in the configuration
        assert words in text
    assert "Hover over a dot" not in text
    pictures = sum(len(one.images) for one in printed.pages)
    assert pictures == page.read_text(encoding="utf-8").count('class="still"')


def test_an_unfinished_run_is_a_page_too(window: Browser, page: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.json", "architecture.json", "environment.json"):
        (run / name).write_bytes((page.parent / name).read_bytes())
    stamp(run)
    window.open(write_page(run))
    assert "not finished" in window.text("header")
    assert len(window.run(LAYERS)) == 12
    assert window.faults() == []
