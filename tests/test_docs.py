"""The code in the documentation runs, and its examples are as short as they say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from run_cases import small, write_run

from bnas.page.recorded import MISSING
from bnas.passes.axes import RULES
from bnas.passes.calls import MODULE_FORMS

PASSES = Path(__file__).parents[1] / "docs" / "passes.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(text: str) -> list[str]:
    """The Python code in a page, block by block."""
    return BLOCK.findall(text)


def run(code: list[str]) -> None:
    """Run blocks one after another, as one module."""
    names: dict[str, object] = {"__name__": "example"}
    for number, block in enumerate(code):
        exec(compile(block, f"block {number}", "exec", dont_inherit=True), names)


@pytest.fixture
def tables_put_back() -> Iterator[None]:
    """What an example registers is forgotten after it."""
    tables: list[dict[object, object]] = [RULES, MODULE_FORMS]  # type: ignore[list-item]
    before = [dict(table) for table in tables]
    yield
    for table, known in zip(tables, before, strict=True):
        table.clear()
        table.update(known)


@pytest.mark.usefixtures("tables_put_back")
def test_the_page_on_passes_runs() -> None:
    code = blocks(PASSES.read_text())
    examples = [block for block in code if "@register_rule" in block or "(Pass):" in block]
    assert len(examples) == 2
    assert all(len(block.splitlines()) < 40 for block in examples)
    run(code)


def test_the_page_on_training_runs() -> None:
    code = blocks((PASSES.parent / "training.md").read_text())
    loop = next(block for block in code if "schedule.step()" in block)
    assert len(loop.splitlines()) <= 8 + 1  # what the page promises, and the optimizer
    run(code)


def test_the_page_on_search_runs() -> None:
    run(blocks((PASSES.parent / "search.md").read_text()))


def test_the_page_on_reports_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "runs" / "demo", small())
    monkeypatch.chdir(tmp_path)
    text = (PASSES.parent / "report.md").read_text()
    run(blocks(text))
    assert "</html>" in (tmp_path / "runs/demo/report.html").read_text()
    for name in (*MISSING, "config.json"):
        assert f"`{name}`" in text


@pytest.mark.usefixtures("tables_put_back")
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("types.unify(input[1], gain[0])", "types.unify(input[2], gain[0])"),
        ('register_module(Limiter, ModuleForm(limited, tensors=("gain",)))', ""),
        ("graph.call_function(F.relu,", "graph.call_function(F.gelu,"),
        ('"0": (16, 24, 32)', '"0": (16, 32)'),
    ],
)
def test_a_mistake_in_the_page_is_noticed(right: str, wrong: str) -> None:
    text = PASSES.read_text()
    assert text.count(right) == 1
    with pytest.raises(AssertionError):
        run(blocks(text.replace(right, wrong)))
