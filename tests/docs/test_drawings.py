"""The drawings in docs/images are those that the script makes now, and a page shows each of them."""

from __future__ import annotations

import importlib.util
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).parents[2]


def drawings() -> dict[str, str]:
    """What the script beside this file makes, by the names of the files."""
    spec = importlib.util.spec_from_file_location("drawings", Path(__file__).with_name("drawings.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return dict(module.DRAWINGS)


def test_the_files_are_what_the_script_makes_and_a_page_shows_them() -> None:
    page = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/explanation.md"))
    for name, content in drawings().items():
        assert (ROOT / "docs" / "images" / name).read_text(encoding="utf-8") == content
        assert page.count(f"images/{name})") == 1


def test_each_drawing_is_xml_with_a_title() -> None:
    for content in drawings().values():
        title = ET.fromstring(content).find("{http://www.w3.org/2000/svg}title")
        assert title is not None
        assert title.text
