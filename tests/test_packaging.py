"""The four folders reach a user as one package, whichever way it is built, and never twice."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAPPED = {"bnas": "bnas", "passes": "bnas/passes", "search": "bnas/search", "runtime": "bnas/runtime"}


def run(*command: str, cwd: Path, path: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command with nothing but ``path`` on PYTHONPATH; the caller looks at the exit status."""
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "default", "PIP_NO_INDEX": "1"}
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


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist from a copy of the tree and the wheel from that sdist, as an upload does."""
    tree = tmp_path_factory.mktemp("tree") / "bnas"
    unwanted = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, tree, ignore=unwanted)
    dist = tmp_path_factory.mktemp("dist")
    succeeded(run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist), cwd=tree))
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
