"""The four folders reach a user as one package, whichever way it is built, and never twice."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAPPED = {"bnas": "bnas", "passes": "bnas/passes", "search": "bnas/search", "runtime": "bnas/runtime"}


def run(*command: str, cwd: Path, path: str = "", source: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command with nothing but ``path`` on PYTHONPATH; the caller looks at the exit status."""
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "default", "PIP_NO_INDEX": "1"}
    environment["BNAS_SOURCE"] = source
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def succeeded(process: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert process.returncode == 0, process.stdout + process.stderr
    return process


def sources() -> set[str]:
    """Return where each module of the tree belongs in the wheel."""
    return {
        f"{target}/{file.relative_to(ROOT / folder).as_posix()}"
        for folder, target in MAPPED.items()
        for file in (ROOT / folder).rglob("*.py")
    }


SOURCE = "https://github.com/someone/bnas"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist from a copy of the tree and the wheel from that sdist, as an upload does."""
    tree = tmp_path_factory.mktemp("tree") / "bnas"
    unwanted = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, tree, ignore=unwanted)
    dist = tmp_path_factory.mktemp("dist")
    succeeded(run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist), cwd=tree, source=SOURCE))
    return dist


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    (wheel,) = built.glob("*.whl")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)]
    succeeded(run(*command, cwd=target))
    return target


def test_wheel_holds_every_module_under_bnas_and_nothing_beside_it(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if name.endswith(".py")} == sources()
    assert "bnas/py.typed" in names


def metadata(wheel: Path) -> Message:
    """What PyPI shows of a wheel: headers, and the page as the payload."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_string(archive.read(name).decode())


def links(page: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", page)


def test_the_page_on_pypi_has_no_link_that_leads_nowhere(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    told = metadata(wheel)
    page, tag = str(told.get_payload()), f"v{told['Version']}"
    assert told["Description-Content-Type"] == "text/markdown"
    assert len(links(page)) == len(links((ROOT / "README.md").read_text())) > 10
    for link in links(page):
        found = re.fullmatch(rf"{SOURCE}/(raw|blob)/{tag}/([^#]+)(#.*)?", link)
        assert found is not None, link
        assert (ROOT / found[2]).exists(), link
        assert (found[1] == "raw") == link.endswith((".svg", ".png"))
    addresses = dict(one.split(", ") for one in told.get_all("Project-URL"))
    assert addresses["Source"] == SOURCE
    assert addresses.keys() == {"Source", "Documentation", "Changelog", "Issues"}


def test_without_an_address_none_is_made_up(tmp_path: Path) -> None:
    tree = tmp_path / "bnas"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".*", "build", "dist", "runs", "*.egg-info", "tests"))
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path / "dist")]
    succeeded(run(*command, cwd=tree))
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    told = metadata(wheel)
    assert told.get_all("Project-URL") is None
    assert told.get_payload() == (ROOT / "README.md").read_text()


def test_classifiers_name_the_pythons_that_ci_reads_the_source_with(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    named = [one.rpartition(" ")[2] for one in metadata(wheel).get_all("Classifier") if re.search(r":: 3\.\d+$", one)]
    assert named == ["3.10", "3.11", "3.12", "3.13"]
    (minors,) = re.findall(r"for minor in ([\d ]+);", (ROOT / "Makefile").read_text())
    assert named == [f"3.{minor}" for minor in minors.split()]


def test_the_package_says_its_version_without_the_checkout(installed: Path, tmp_path: Path) -> None:
    script = "import bnas, importlib.metadata as known; print(bnas.__version__ == known.version('bnas'))"
    assert succeeded(run(sys.executable, "-c", script, cwd=tmp_path, path=str(installed))).stdout == "True\n"


def test_the_command_says_its_versions_without_the_checkout(installed: Path, tmp_path: Path) -> None:
    told = succeeded(run(sys.executable, "-m", "bnas", "--version", cwd=tmp_path, path=str(installed))).stdout
    assert re.fullmatch(r"bnas [\d.]+, torch \S+, onnxruntime \S+, Python 3\S+\n", told)


def test_sdist_holds_the_four_folders_and_the_tests(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in (*MAPPED, "tests"):
        expected = {file.relative_to(ROOT).as_posix() for file in (ROOT / folder).rglob("*.py")}
        assert expected <= names
    assert {"LICENSE", "CHANGELOG.md", "pyproject.toml", "bnas/py.typed"} <= names


@pytest.mark.parametrize("package", ["bnas", "bnas.passes", "bnas.search", "bnas.runtime"])
def test_installed_package_is_imported_from_where_it_was_installed(
    package: str, installed: Path, tmp_path: Path
) -> None:
    code = f"import {package} as p; print(p.__file__)"
    process = succeeded(run(sys.executable, "-c", code, cwd=tmp_path, path=str(installed)))
    assert Path(process.stdout.strip()) == installed.joinpath(*package.split("."), "__init__.py")


@pytest.mark.parametrize("folder", ["passes", "search", "runtime"])
def test_bare_name_is_refused_in_a_checkout(folder: str) -> None:
    process = run(sys.executable, "-c", f"import {folder}", cwd=ROOT)
    assert process.returncode != 0
    assert f"ImportError: import 'bnas.{folder}', not '{folder}'" in process.stderr


def test_editable_install_maps_each_name_to_its_folder(tmp_path: Path) -> None:
    """The environment that runs the tests is an editable install: else they would test another copy."""
    code = "import bnas.passes, bnas.search, bnas.runtime as r; print(bnas.passes.__file__, bnas.search.__file__)"
    process = succeeded(run(sys.executable, "-c", code, cwd=tmp_path))
    assert process.stdout.split() == [str(ROOT / "passes/__init__.py"), str(ROOT / "search/__init__.py")]
