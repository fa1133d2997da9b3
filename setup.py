"""What pyproject.toml cannot say: addresses, which are known only where a release is made.

``BNAS_SOURCE=https://github.com/OWNER/bnas python -m build`` puts the addresses of the project into the package, and
makes the links of the README absolute, at the tag of the version: the page on PyPI has no files for relative ones.
Without the variable links stay as they are, and the package has no addresses.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
RELATIVE = re.compile(r"(!?)(\[[^\]]*\])\((?!https?://|#|mailto:)([^)\s]+)\)")
"""A link or picture of Markdown to a file of the repository."""


def absolute(text: str, source: str, tag: str) -> str:
    """Return a page whose links go to the repository at a tag: pictures to the file itself, others to its page."""

    def link(found: re.Match[str]) -> str:
        picture, title, place = found.groups()
        return f"{picture}{title}({source}/{'raw' if picture else 'blob'}/{tag}/{place})"

    return RELATIVE.sub(link, text)


def addresses(source: str, tag: str) -> dict[str, str]:
    """Return the addresses of the project, by the names that PyPI shows with a picture."""
    return {
        "Source": source,
        "Documentation": f"{source}/blob/{tag}/docs/index.md",
        "Changelog": f"{source}/blob/{tag}/CHANGELOG.md",
        "Issues": f"{source}/issues",
    }


def version() -> str:
    """Return the version, which stands in pyproject.toml only."""
    found = re.search(r'^version = "(.+?)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return found[1]


def main() -> None:
    """Build as pyproject.toml says."""
    source, tag = os.environ.get("BNAS_SOURCE", "").rstrip("/"), f"v{version()}"
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    setup(
        long_description=absolute(text, source, tag) if source else text,
        long_description_content_type="text/markdown",
        project_urls=addresses(source, tag) if source else {},
    )


if __name__ == "__main__":
    main()
