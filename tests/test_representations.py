"""What a notebook shows of a super-network, an evaluation and a result; text of users is never markup."""

from __future__ import annotations

import base64
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import browser
from torch import nn

import bnas
from bnas.passes import Subnet
from bnas.passes.wording import amount, count
from bnas.runtime import SuperNetwork
from bnas.search import Constraint, Evaluation, Objective, SearchResult

PNG = b"\x89PNG"
EVIL = "<script>document.title = 'evil'</script>"


class Net(nn.Module):
    """Two convolutions around one that can be skipped."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = (
            nn.Conv2d(3, 16, 3, padding=1),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.Linear(16, 4),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = x + self.body(x)
        return self.head(x.mean((2, 3)))


def test_settings_do_not_show_the_numbers_of_data() -> None:
    batches = [(torch.full((2, 3, 8, 8), 0.125), torch.zeros(2, dtype=torch.long))] * 3
    data = bnas.Splits(batches, batches[:1], iter(batches))  # type: ignore[arg-type]
    assert repr(data) == "Splits of batches: train 3, validation 1, test a stream"
    job = bnas.Job(Net(), data, batches[0][0], int8=bnas.Int8(calibration=batches, validation=batches))
    assert "0.1250" not in repr(job)
    assert "Conv2d" not in repr(job)
    assert repr(data) in repr(job)
    assert "0.1250" in repr(batches)  # what would be seen


def test_a_super_network_says_what_it_can_be() -> None:
    torch.manual_seed(0)
    supernet = SuperNetwork.from_model(Net().eval(), torch.randn(2, 3, 8, 8), {"width_multipliers": (1, 0.5)})
    assert repr(supernet) == (
        "SuperNetwork of Net with 4 sub-networks\n"
        "  1 width: stem (8 to 16)\n"
        "  1 skippable block: add\n"
        "  maximal: 2836 parameters, 175 k MACs\n"
        "  minimal: 260 parameters, 13.9 k MACs\n"
        "  sizes that may change: batch, height, width\n"
        "  left unchanged: 4 places; `diagnostics` lists them with reasons"
    )
    assert "Conv2d(3, 16" in repr(supernet.model)


def evaluation(index: int, accuracy: float, macs: float, **changes: Any) -> Evaluation:
    subnet = Subnet({"stem": 16 - index}, frozenset({"add"} if index % 2 else ()))
    settings: dict[str, Any] = {"values": {"accuracy": accuracy, "macs": macs}, "seconds": 0.5, **changes}
    return Evaluation(index, subnet, **settings)


ROWS = (
    evaluation(0, 0.9, 1_300_000.0),
    evaluation(1, 0.85, 700_000.0),
    evaluation(2, 0.8, 900_000.0),
    evaluation(3, 0.0, 0.0, values={}, failure="MemoryError: no memory"),
    evaluation(4, 0.7, 100_000.0),
)
RESULT = SearchResult((Objective("accuracy", "max"), Objective("macs", "min")), ROWS, (Constraint("macs", "<=", 1e6),))


def test_an_evaluation_says_its_values_or_why_there_are_none() -> None:
    assert repr(ROWS[1]) == "<Evaluation 1: accuracy 0.85, macs 700 k; Subnet(widths={'stem': 15}, skipped={'add'})>"
    assert repr(ROWS[3]).startswith("<Evaluation 3: failed with MemoryError: no memory; Subnet(")


def test_a_result_says_what_was_found() -> None:
    assert repr(RESULT) == (
        "SearchResult: 5 evaluations, 2 on the Pareto front, 1 failed\n"
        "  accuracy (max): 0.7 to 0.85 on the front\n"
        "  macs (min): 100 k to 700 k on the front\n"
        "  macs <= 1000000: met by 3 of 4"
    )
    assert repr(SearchResult((Objective("macs", "min"),), ())) == (
        "SearchResult: 0 evaluations, 0 on the Pareto front\n  macs (min)"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.93128, "0.9313"), (512, "512"), (12_345, "12.3 k"), (3.41e9, "3.41 G"), (-20_000, "-20 k"), (1e15, "1e+15")],
)
def test_amounts_have_few_digits(value: float, text: str) -> None:
    assert amount(value) == text


def test_counts_are_exact_where_that_can_be_read() -> None:
    assert (count(3_888), count(10**9), count(10**5000)) == ("3,888", "1.0e+9", "1.0e+5000")


class Page(HTMLParser):
    """The tags, cells and pictures of a piece of HTML; fails where tags do not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.cells: list[str] = []
        self.pictures: list[bytes] = []
        self.titles: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        if tag == "img":
            self.pictures.append(base64.b64decode((given["src"] or "").removeprefix("data:image/png;base64,")))
        if tag == "tr" and given.get("title"):
            self.titles.append(given["title"] or "")
        if tag in ("td", "th"):
            self.cells.append("")
        if tag not in ("img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def test_a_notebook_shows_the_front_as_a_table_and_a_picture() -> None:
    page = Page(RESULT._repr_html_())
    head, *rows = [page.cells[place : place + 4] for place in range(0, len(page.cells), 4)]
    assert head == ["evaluation", "accuracy", "MACs", "against the first evaluation"]
    assert rows == [
        ["4", "70.00 %", "0.10 M", "1 of 1 width smaller"],
        ["1", "85.00 %", "0.70 M", "1 block skipped, 1 of 1 width smaller"],
    ]
    assert page.titles[1] == "skipped blocks (1): add\nsmaller widths (1 of 1): stem 15 of 16"
    assert [one[:4] for one in page.pictures] == [PNG]


def test_a_long_front_is_cut_and_several_objectives_have_several_pictures() -> None:
    three = (Objective("accuracy", "max"), Objective("macs", "min"), Objective("latency", "min"))
    rows = [
        evaluation(n, n / 100, 1e6 * n, values={"accuracy": n / 100, "macs": 1e6 * n, "latency": n}) for n in range(30)
    ]
    text = SearchResult(three, tuple(rows))._repr_html_()
    page = Page(text)
    assert (page.tags.count("tr"), len(page.pictures)) == (1 + 20, 2)
    assert "<p>and 10 more</p>" in text


@pytest.mark.parametrize("rows", [(), (ROWS[3],)], ids=["nothing", "only failures"])
def test_without_a_front_there_is_text(rows: tuple[Evaluation, ...]) -> None:
    page = Page(SearchResult(RESULT.objectives, rows)._repr_html_())
    assert "table" not in page.tags
    assert "img" not in page.tags


def hostile() -> SearchResult:
    """Names of objectives, widths and blocks that are markup."""
    values = ({EVIL: 1.0, "macs": 2.0}, {EVIL: 0.5, "macs": 1.0})
    names = ({f'"{EVIL}': 8}, {f'"{EVIL}': 4})
    skipped = (frozenset[str](), frozenset({f"'>{EVIL}"}))
    rows = [Evaluation(n, Subnet(names[n], skipped[n]), values[n], 0.1) for n in range(2)]
    return SearchResult((Objective(EVIL, "max"), Objective("macs", "min")), tuple(rows))


def test_text_of_users_is_no_markup() -> None:
    text = hostile()._repr_html_()
    page = Page(text)
    assert "script" not in page.tags
    assert EVIL in page.cells
    assert any(EVIL in title for title in page.titles)
    assert not re.search(r"<script", text)


def test_a_browser_shows_it_and_runs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "result.html"
    path.write_text(
        f"<!doctype html><meta charset=utf-8><title>fine</title>{hostile()._repr_html_()}", encoding="utf-8"
    )
    with browser() as one:
        one.driver.get(path.as_uri())
        assert one.driver.title == "fine"
        assert one.run("return document.images[0].naturalWidth") > 500
        assert one.run("return document.querySelectorAll('tbody tr').length") == 2
        said = [entry["message"] for entry in one.driver.get_log("browser")]
        assert [message for message in said if not message.startswith("chrome://")] == []  # not the browser's own pages


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "bnas.page.pictures", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    text = RESULT._repr_html_()
    assert "pip install &#x27;bnas[report]&#x27;" in text
    assert "table" in Page(text).tags
