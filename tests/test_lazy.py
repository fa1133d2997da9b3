"""Names of the packages are imported at their first use, and are what they say."""

from __future__ import annotations

import subprocess
import sys

import pytest

PACKAGES = ("bnas", "bnas.run", "bnas.passes", "bnas.runtime", "bnas.search")
LIGHT = (
    "bnas",
    "bnas.run",
    "bnas.passes.errors",
    "bnas.run.files.output",
    "bnas.search.result",
    "bnas.runtime.storage.files",
    "bnas.page.recorded",
)


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("module", LIGHT)
def test_what_only_reads_files_does_not_load_torch(module: str) -> None:
    assert run(f"import sys, {module}; print('torch' in sys.modules)") == "False\n"


@pytest.mark.parametrize("package", PACKAGES)
def test_a_name_is_never_the_module_of_that_name(package: str) -> None:
    """An imported module becomes an attribute of its package, and would hide a lazy name that is spelled alike."""
    script = f"""
import importlib, pkgutil, {package} as package
for module in pkgutil.iter_modules(package.__path__):
    importlib.import_module(f"{package}.{{module.name}}")
print(*(name for name in package.__all__ if type(getattr(package, name)).__name__ == "module"))
"""
    assert run(script).split() == []


def test_whoever_can_analyse_has_the_rules() -> None:
    for module in (
        "bnas.passes.axes.analysis",
        "bnas.passes.ops",
        "bnas.passes.ops.views",
        "bnas.passes.pipeline.passes",
    ):
        found = run(f"import {module}\nfrom bnas.passes import OPERATORS\nprint(len(OPERATORS))")
        assert int(found) > 200, module


def test_what_is_not_there_is_told() -> None:
    import bnas.passes

    with pytest.raises(AttributeError, match=r"module 'bnas.passes' has no attribute 'Subnets'"):
        getattr(bnas.passes, "Subnets")  # noqa: B009
