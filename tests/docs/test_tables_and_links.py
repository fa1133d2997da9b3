"""No table cell of a page is empty or holds a placeholder, and every relative link and anchor leads somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from markdown.extensions.toc import slugify

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^(```|~~~).*?^\1[ \t]*$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)", re.DOTALL)
HEADING = re.compile(r"^#{1,6} +(.+?)(?: +\{[^}]*\})?$", re.MULTILINE)
PLACEHOLDER = re.compile(r"\b(TIME|TODO|TBD|FIXME|XXX)\b|^\?+$")
MAY_BE_EMPTY = {("docs/configuration.md", "default")}
"""Columns of generated tables: a key without a default says in its meaning what happens without it."""


def prose(text: str) -> str:
    """The text without fenced code; the lines keep their numbers."""
    return FENCE.sub(lambda fence: "\n" * fence[0].count("\n"), text)


def cells(text: str) -> Iterator[tuple[int, str, str]]:
    """Line, column title and content of every table cell.

    Empty cells at the start of a row are left out: the row belongs to the one above it, or is the head of a table.
    """
    titles: list[str] = []
    for line, row in enumerate(map(str.strip, prose(text).splitlines()), 1):
        if not row.startswith("|"):
            titles = []
            continue
        content = [cell.strip() for cell in re.split(r"(?<!\\)\|", row[1:-1])]
        titles = titles or content
        for column, cell in enumerate(content):
            if any(content[: column + 1]):
                yield line, titles[column], cell


def bad_cells(page: str, text: str) -> list[str]:
    """Where a cell is empty or holds a placeholder."""
    return [
        f"{page}:{line}: {title}: {cell!r}"
        for line, title, cell in cells(text)
        if PLACEHOLDER.search(CODE.sub("", cell)) or (not cell and (page, title) not in MAY_BE_EMPTY)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_cell_says_something(page: Path) -> None:
    assert bad_cells(str(page.relative_to(ROOT)), page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("cell", ["", "TIME", "TODO: measure", "?"])
def test_a_bad_cell_is_noticed(cell: str) -> None:
    text = f"| example | CPU s |\n|---|---:|\n| `--budget TIME` | 65 |\n| second | {cell} |\n"
    assert bad_cells("docs/examples.md", text) == [f"docs/examples.md:4: CPU s: {cell!r}"]


def anchors(text: str) -> set[str]:
    """The anchors of the headings, as the site makes them: a second heading of the same words gets a number."""
    found: set[str] = set()
    for heading in HEADING.findall(prose(text)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = anchor = slugify(plain, "-")
        number = 1
        while anchor in found:
            anchor, number = f"{slug}_{number}", number + 1
        found.add(anchor)
    return found


def broken_links(page: Path, text: str) -> list[str]:
    """Relative links to a file or heading that does not exist."""
    broken = []
    for link in LINK.findall(CODE.sub("", prose(text))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.is_file():
            broken.append(link)
        elif anchor and anchor not in anchors(text if target == page else target.read_text(encoding="utf-8")):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    assert broken_links(page, page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("link", ["missing.md", "search.md#no-such-heading", "#no-such-heading", "images/missing.svg"])
def test_a_broken_link_is_noticed(link: str) -> None:
    text = f"# Page\n\n[good](search.md#algorithms), [good too](#page) and [bad]({link})\n"
    assert broken_links(ROOT / "docs" / "index.md", text) == [link]


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [str(page.relative_to(ROOT / "docs")) for page in PAGES[1:]]
    assert [page for page in pages if f": {page}\n" not in navigation] == []
