"""The public face: every name is listed, found, documented, and so is every class that a signature names."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import bnas
from bnas.passes import BnasError

ROOT = Path(__file__).parents[1]
PACKAGES = ("bnas", "bnas.run", "bnas.search", "bnas.runtime", "bnas.passes", "bnas.loggers")
PARTS = ("loggers", "passes", "run", "runtime", "search", "testing")
"""Sub-packages that are attributes of `bnas`."""
DOCUMENTED = re.compile(r"^::: ([\w.]+)$", re.MULTILINE)


@dataclass(frozen=True)
class Named:
    """A class of bnas that a public signature names."""

    place: str
    """The function, method or attribute."""
    found: type

    def __str__(self) -> str:
        return f"{self.found.__module__}.{self.found.__qualname__}, in {self.place}"


@cache
def exported() -> dict[int, str]:
    """The first public path of everything that a public package exports, by its identity."""
    paths: dict[int, str] = {}
    for package in PACKAGES:
        for name in importlib.import_module(package).__all__:
            paths.setdefault(id(getattr(importlib.import_module(package), name)), f"{package}.{name}")
    return paths


def is_ours(one: object) -> bool:
    return getattr(one, "__module__", "").split(".")[0] == "bnas"


@cache
def namespace(module: str) -> dict[str, Any]:
    """What annotations of a module may name: its globals, and what it imports for the type checker only."""
    home = sys.modules[module]
    names = dict(vars(home))
    for node in ast.walk(ast.parse(inspect.getsource(home))):
        if isinstance(node, ast.ImportFrom):
            package = module if hasattr(home, "__path__") else module.rpartition(".")[0]
            source = importlib.import_module("." * node.level + (node.module or ""), package)
            names |= {one.asname or one.name: getattr(source, one.name) for one in node.names}
        elif isinstance(node, ast.Import):
            names |= {
                one.asname or one.name.split(".")[0]: importlib.import_module(
                    one.name if one.asname else one.name.split(".")[0]
                )
                for one in node.names
            }
    return names | {name: evaluated(text, names) for name, text in names.items() if is_alias(name, text)}


def is_alias(name: str, value: object) -> bool:
    """Whether a type has this name, and is written as a text."""
    return isinstance(value, str) and name[0].isupper() and not name.isupper()


def evaluated(text: str, names: dict[str, Any]) -> Any:
    """The type that a text describes; the text where it names what is imported elsewhere."""
    try:
        return eval(text, dict(names))
    except NameError:
        return text


OF_THE_PEER = "bnas.config.bootstrapnas"
"""The sections of a file in BootstrapNAS's layout: docs/coming_from_bootstrapnas.md describes their keys."""


def classes(hint: Any) -> Iterator[type]:
    """The classes of bnas in a type."""
    if isinstance(hint, type) and is_ours(hint) and hint.__module__ != OF_THE_PEER:
        yield hint
    for part in typing.get_args(hint):
        yield from classes(part) if not isinstance(part, list) else (one for each in part for one in classes(each))


def named_by(place: str, annotated: Any, module: str) -> Iterator[Named]:
    for name, hint in typing.get_type_hints(annotated, namespace(module)).items():
        if not name.startswith("_"):
            yield from (Named(f"{place}: {name}", one) for one in classes(hint))


def function_of(member: object) -> Callable[..., Any] | None:
    """The function behind a method, property or function."""
    if isinstance(member, property):
        member = member.fget
    if isinstance(member, cached_property):
        member = member.func
    member = getattr(member, "__func__", member)
    return member if inspect.isfunction(member) and is_ours(member) else None


def members(kind: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The public methods and properties of a class, and those that it has from classes of ours."""
    for base in kind.__mro__:
        for name, member in vars(base).items() if is_ours(base) else ():
            function = function_of(member)
            made = function is not None and function.__code__.co_filename == "<string>"  # of fields, which are read too
            if function and not made and (not name.startswith("_") or name in ("__init__", "__call__")):
                yield f"{kind.__name__}.{name}", function


def fields(kind: type) -> Iterator[Named]:
    for base in kind.__mro__:
        own = {n: h for n, h in vars(base).get("__annotations__", {}).items() if not n.startswith("_")}
        if is_ours(base) and own:
            bare = type(base.__name__, (), {"__annotations__": own})
            yield from named_by(f"{kind.__name__}", bare, base.__module__)


def signatures(package: str) -> Iterator[Named]:
    """What the signatures of a package name."""
    module = importlib.import_module(package)
    for name in module.__all__:
        one = getattr(module, name)
        for place, function in functions(name, one):
            yield from named_by(place, function, function.__module__)
        if isinstance(one, type):
            yield from fields(one)


def functions(name: str, one: object) -> Iterator[tuple[str, Callable[..., Any]]]:
    if isinstance(one, type):
        yield from members(one)
    elif (function := function_of(one)) is not None:
        yield name, function


@pytest.mark.parametrize("package", PACKAGES)
def test_every_class_that_a_signature_names_is_exported(package: str) -> None:
    found = list(signatures(package))
    assert len(found) > 5
    assert sorted({str(one) for one in found if id(one.found) not in exported()}) == []


def test_what_is_not_exported_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    without = {key: path for key, path in exported().items() if path != "bnas.search.Constraint"}
    missing = {one.place for one in signatures("bnas.search") if id(one.found) not in without}
    assert "SearchResult: constraints" in missing


def errors_in(doc: str) -> set[str]:
    """The errors that a docstring says are raised."""
    _, _, raises = doc.partition("Raises")
    return set(re.findall(r"\b[A-Z]\w*(?:Error|Warning)\b", raises))


@pytest.mark.parametrize("package", PACKAGES)
def test_every_error_that_a_docstring_names_is_exported(package: str) -> None:
    known = {path.rpartition(".")[2] for path in exported().values()} | set(dir(importlib.import_module("builtins")))
    module = importlib.import_module(package)
    pairs = [pair for name in module.__all__ for pair in functions(name, getattr(module, name))]
    told = {f"{error}, in {place}" for place, one in pairs for error in errors_in(one.__doc__ or "")}
    assert sorted(text for text in told if text.partition(",")[0] not in known) == []


def test_errors_are_those_of_bnas() -> None:
    kinds = [getattr(importlib.import_module(p), n) for p in PACKAGES for n in dir(importlib.import_module(p))]
    errors = [one for one in kinds if isinstance(one, type) and issubclass(one, Exception)]
    assert len(errors) > 20
    assert all(issubclass(one, BnasError | UserWarning) for one in errors)


def test_the_api_page_has_every_public_name_once() -> None:
    listed = DOCUMENTED.findall((ROOT / "docs" / "api.md").read_text(encoding="utf-8"))
    assert sorted(set(exported().values()) - set(listed)) == []
    assert sorted(listed) == sorted(exported().values())


@pytest.mark.parametrize("package", PACKAGES)
def test_what_is_public_says_what_it_is(package: str) -> None:
    module = importlib.import_module(package)
    own = {name: getattr(module, name) for name in module.__all__ if is_ours(getattr(module, name))}
    assert [name for name, one in own.items() if callable(one) and not (one.__doc__ or "").strip()] == []


def test_the_top_level_is_small_and_sorted() -> None:
    models = {"SuperNetwork", "SearchSpace", "Subnet", "Elasticity", "BnasError", "verify"}
    training = {"Trainer", "Stage", "Recipe", "Distillation", "Schedule", "Evaluator", "fine_tune", "FineTune"}
    searching = {"prune", "Searcher", "SearchSettings", "NSGA2", "RNSGA2", "RandomSearch", "Objective", "SearchResult"}
    files = {"Int8", "export_onnx", "evaluate_onnx", "measure_latency", "LatencyModel", "LatencySettings", "Target"}
    whole = {"Job", "Splits", "run_job", "load_config"}
    assert set(bnas.__all__) == models | training | {"Callback"} | searching | files | whole
    assert len(bnas.__all__) == len(set(bnas.__all__)) == 34


def shown(package: str) -> list[str]:
    return [name for name in dir(importlib.import_module(package)) if not name.startswith("__")]


@pytest.mark.parametrize("package", PACKAGES)
def test_dir_shows_the_public_names_and_no_others(package: str) -> None:
    module = importlib.import_module(package)
    more = PARTS if package == "bnas" else ()
    assert shown(package) == sorted({*module.__all__, *more})
    assert all(getattr(module, name) is not None for name in shown(package))
    assert not any(isinstance(getattr(module, name), ModuleType) for name in module.__all__)


def fresh(script: str) -> list[str]:
    """The words that a new interpreter prints."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_in_a_fresh_interpreter_dir_imports_nothing_and_sub_packages_are_attributes() -> None:
    script = """
import sys, bnas
before = len(dir(bnas)) > 25 and "torch" not in sys.modules and "bnas.search" not in sys.modules
print(before, *(name for name in dir(bnas) if not name.startswith("__")))
"""
    assert fresh(script) == ["True", *shown("bnas")]
    assert fresh("import bnas; print(bnas.search.Workers.__name__, 'torch.fx' in __import__('sys').modules)") == [
        "Workers",
        "False",
    ]
    for part in PARTS:
        assert fresh(f"import bnas; print(bnas.{part}.__name__)") == [f"bnas.{part}"]


def texts() -> Iterator[str]:
    """The documentation, and every text in the source: messages and docstrings."""
    yield from (page.read_text(encoding="utf-8") for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
    for folder in ("bnas", "passes", "runtime", "search"):
        for file in (ROOT / folder).rglob("*.py"):
            nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            yield from (one.value for one in nodes if isinstance(one, ast.Constant) and isinstance(one.value, str))


def is_there(path: str) -> bool:
    """Whether a dotted path is that of something that can be imported."""
    found: Any = bnas
    names = path.split(".")
    for place, name in enumerate(names[1:], 1):
        if not hasattr(found, name):
            try:
                importlib.import_module(".".join(names[: place + 1]))
            except ImportError:
                return False
        found = getattr(found, name)
    return True


def test_what_texts_name_is_there() -> None:
    """Classes, and functions of the packages: other dotted names are files and keys of ONNX files."""
    parts = "|".join((*PARTS, "page"))
    pattern = re.compile(rf"(?<![\w./'-])bnas(?:(?:\.\w+)*\.[A-Z]\w+|\.(?:{parts})\.\w+)")
    found = {path for text in texts() for path in pattern.findall(text)}
    assert len(found) > 60
    assert sorted(path for path in found if not is_there(path)) == []
    assert not is_there("bnas.search.Workerz")
