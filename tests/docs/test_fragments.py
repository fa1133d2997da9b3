"""What stands in pages and is not run: names of bnas exist, calls have its arguments, and settings are keys of it."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import bnas
from bnas.config.configuration import Configuration
from bnas.config.file import parse_configuration
from bnas.config.formats import json_value
from bnas.config.section import ConfigurationWarning

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^ {4,}\S.*\n)+", re.MULTILINE)
NAME = re.compile(r"\bbnas((?:\.[A-Za-z_]\w*)+)")
FILES = {".yaml", ".schema.json"}
"""What follows the name of bnas in names of files."""
METADATA = {".fallback", ".outputs", ".subnet", ".costs", ".version", ".supernet"}
"""Keys of the metadata of an ONNX file."""
NEEDED: dict[str, Any] = {"model": "net.py:Net", "data": "net.py:data", "input_info": {"sample_size": [1, 3, 8, 8]}}


def code_beside(text: str) -> Iterator[str]:
    """Code between backticks, and indented blocks."""
    prose = FENCE.sub("", text)
    yield from re.findall(r"`([^`\n]+)`", prose)
    yield from map(textwrap.dedent, INDENTED.findall(prose))


def found(dotted: str) -> Any:
    """The object of a name such as ``.runtime.Trainer``."""
    one: Any = bnas
    for part in dotted.strip(".").split("."):
        one = getattr(one, part)
    return one


def wrong_names(code: str) -> Iterator[str]:
    """Names that bnas does not have; where there are none, arguments that what is called does not take."""
    for dotted in NAME.findall(code):
        if dotted not in FILES | METADATA:
            try:
                found(dotted)
            except AttributeError as error:
                yield str(error)
                return
    try:
        calls = [one for one in ast.walk(ast.parse(code)) if isinstance(one, ast.Call)]
    except SyntaxError:  # prose, a command, or a part of a statement
        return
    for call in calls:
        name = ast.unparse(call.func)
        if NAME.fullmatch(name):
            yield from (f"{name} does not take {one}" for one in unknown_arguments(call, found(name[4:])))


def unknown_arguments(call: ast.Call, called: Any) -> list[str]:
    parameters = inspect.signature(called).parameters.values()
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        return []
    return [one.arg for one in call.keywords if one.arg and one.arg not in {each.name for each in parameters}]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_names_and_arguments_are_those_of_bnas(page: Path) -> None:
    codes = code_beside(page.read_text(encoding="utf-8"))
    assert [told for code in codes for told in wrong_names(code)] == []


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("bnas.Traner(net)", "module 'bnas' has no attribute 'Traner'"),
        ("bnas.Stage(epoch=3)", "bnas.Stage does not take epoch"),
    ],
)
def test_a_wrong_name_is_noticed(code: str, told: str) -> None:
    assert told in next(wrong_names(f"{code}\n"))


def settings_in(text: str) -> Iterator[dict[str, Any]]:
    """Blocks of JSON, with what a configuration needs where they are a part of one; an ellipsis stands for nothing."""
    blocks = [body for kind, body in FENCE.findall(text) if kind == "json"]
    blocks += [textwrap.dedent(one) for one in INDENTED.findall(FENCE.sub("", text)) if re.match(r'\s*[{"]', one)]
    for block in blocks:
        part = block.strip().rstrip(",")
        whole = part if part.startswith("{") else f"{{{part}}}"
        known = json_value(re.sub(r"(?<=[\[{])\s*\.\.\.\s*(?=[\]}])", "", whole))
        if any(key in Configuration.model_fields for key in known):
            yield {**NEEDED, **known}
        else:
            assert set(known) <= {"bnas", "kind", "ms"}, f"these are no keys of a configuration: {whole}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_settings_of_a_page_are_a_configuration(page: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConfigurationWarning)  # of pages on BootstrapNAS's names
        for settings in settings_in(page.read_text(encoding="utf-8")):
            parse_configuration(settings, str(page))


def test_settings_are_found() -> None:
    assert sum(1 for page in PAGES for _ in settings_in(page.read_text(encoding="utf-8"))) > 10
