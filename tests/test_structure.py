"""The rooms of the source: imports run one way and in no circle, and a module is one story."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = {"passes": "bnas.passes", "runtime": "bnas.runtime", "search": "bnas.search", "bnas": "bnas"}
"""The folders and their names, from the one that imports none of the others to the one that imports all."""

LONGEST = 300
LONGER = {
    "bnas.passes.frontend.recorder": "one class, which sees every call of a model",
    "bnas.passes.assembly.skeleton": "one class, which every sub-network is made by",
    "bnas.runtime.supernetwork": "one class, which is what users hold",
    **{
        f"bnas.passes.ops.{family}": "the records of one family of operators, with their rules"
        for family in (
            "activations",
            "arithmetic",
            "factories",
            "indexing",
            "norms",
            "order",
            "parts",
            "pools",
            "products",
            "reductions",
        )
    },
}
"""What is longer, and why it is one story all the same."""

UPWARDS = {("bnas.search.result", "bnas.page.notebook")}
"""A search result shows itself in a notebook by what the report draws: asked for at that moment only."""

SHORTEST = 40
"""A shorter module that only one other imports belongs to that one."""

NO_NAMES = {"utils", "util", "common", "base", "helpers", "misc"}


@dataclass(frozen=True)
class Import:
    """One import of a module of ours."""

    target: str
    at_once: bool
    """Whether it happens when the importing module is imported: not in a function, and not for types only."""


@dataclass(frozen=True)
class Source:
    """One module as a file."""

    name: str
    path: Path
    tree: ast.Module
    lines: int

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"


def sources() -> dict[str, Source]:
    """All modules of bnas by their names."""
    found = {}
    for folder, package in LAYERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join((package, *parts)).removesuffix(".__init__")
            text = path.read_text(encoding="utf-8")
            found[name] = Source(name, path, ast.parse(text), len(text.splitlines()))
    return found


def homes(source: Source) -> dict[str, str]:
    """The module of each name that a package imports at its first use."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "attach":
            known: Mapping[str, tuple[str, ...]] = ast.literal_eval(node.args[1])
            return {name: module for module, names in known.items() for name in names}
    return {}


def statements(node: ast.AST, at_once: bool = True) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """All imports below a node, each with whether it happens at once."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, at_once
        later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        types = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        yield from statements(child, at_once and not later and not types)


def absolute(source: Source, node: ast.ImportFrom) -> str:
    """The module that ``from ... import`` names."""
    if not node.level:
        return str(node.module)
    parts = source.name.split(".")
    kept = parts[: len(parts) - node.level + source.is_package]
    return ".".join([*kept, *([node.module] if node.module else [])])


def imports(source: Source, known: Mapping[str, Source]) -> Iterator[Import]:
    """What a module imports of bnas; a public name of a package stands for the module that has it."""
    for node, at_once in statements(source.tree):
        if isinstance(node, ast.Import):
            yield from (Import(one.name, at_once) for one in node.names if one.name in known)
        elif (module := absolute(source, node)) in known:
            at_home = homes(known[module])
            for one in node.names:
                inner = f"{module}.{one.name}"
                yield Import(inner if inner in known else at_home.get(one.name, module), at_once)


KNOWN = sources()
GRAPH = {name: {one for one in imports(source, KNOWN) if one.target != name} for name, source in KNOWN.items()}


def circle(graph: Mapping[str, Collection[str]]) -> list[str]:
    """A circle of imports, or nothing."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def layer(name: str) -> int:
    """How far up a module stands."""
    packages = list(LAYERS.values())
    return next(i for i, package in enumerate(packages) if name == package or name.startswith(f"{package}."))


def upwards(graph: Mapping[str, Collection[str]]) -> list[tuple[str, str]]:
    """The imports of a layer above, for types and in functions too."""
    return [(name, one) for name, targets in graph.items() for one in targets if layer(one) > layer(name)]


def too_short(lines: Mapping[str, int], graph: Mapping[str, Collection[str]]) -> list[str]:
    """The modules that belong to their only importer."""
    importers = Counter(target for targets in graph.values() for target in set(targets))
    return [name for name, count in lines.items() if count < SHORTEST and importers[name] == 1]


def prefixes(names: Collection[str]) -> list[str]:
    """The words that three modules of one folder begin with: they stand for a folder that is missing."""
    families = defaultdict(set)
    for name in names:
        folder, _, module = name.rpartition(".")
        families[folder, module.partition("_")[0]].add(module)
    return [f"{folder}.{word}_*" for (folder, word), family in families.items() if len(family) > 2]


def test_there_is_no_circle_of_imports() -> None:
    assert circle({name: {one.target for one in found if one.at_once} for name, found in GRAPH.items()}) == []


def test_a_circle_is_noticed() -> None:
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}


def test_imports_run_one_way() -> None:
    found = set(upwards({name: {one.target for one in targets} for name, targets in GRAPH.items()}))
    assert found <= UPWARDS
    at_once = {(name, one.target) for name, targets in GRAPH.items() for one in targets if one.at_once}
    assert not found & at_once


def test_an_import_of_a_layer_above_is_noticed() -> None:
    graph = {"bnas.passes.errors": {"bnas.runtime"}, "bnas.run.job": {"bnas.search", "bnas.passes"}}
    assert upwards(graph) == [("bnas.passes.errors", "bnas.runtime")]


def test_a_public_name_stands_for_its_module() -> None:
    module = Source("bnas.run.x", ROOT / "bnas/run/x.py", ast.parse("from bnas.passes import SearchSpace"), 1)
    (found,) = imports(module, KNOWN)
    assert "class SearchSpace" in KNOWN[found.target].path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("code", "at_once"),
    [
        ("from bnas.passes import errors", True),
        ("import bnas.passes.errors", True),
        ("class A:\n    from bnas.passes import errors", True),
        ("def f():\n    from bnas.passes import errors", False),
        ("if TYPE_CHECKING:\n    from bnas.passes import errors", False),
    ],
)
def test_imports_are_found_where_they_stand(code: str, at_once: bool) -> None:
    module = Source("bnas.x", ROOT / "bnas/x.py", ast.parse(code), 1)
    assert list(imports(module, KNOWN)) == [Import("bnas.passes.errors", at_once)]


def test_a_module_is_one_story() -> None:
    longer = {name for name, source in KNOWN.items() if source.lines > LONGEST}
    assert longer == set(LONGER)


def test_a_small_module_belongs_to_its_only_importer() -> None:
    lines = {name: source.lines for name, source in KNOWN.items() if not source.is_package}
    graph = {name: {one.target for one in found} for name, found in GRAPH.items() if not KNOWN[name].is_package}
    assert too_short(lines, graph) == []


def test_a_small_module_of_one_importer_is_noticed() -> None:
    assert too_short({"a": 39, "b": 40, "c": 12}, {"x": {"a", "b", "c"}, "y": {"c"}}) == ["a"]


def test_folders_and_not_prefixes() -> None:
    assert prefixes(KNOWN) == []
    assert prefixes(["p.q.rule_a", "p.q.rule_b", "p.rule_c"]) == []
    assert prefixes(["p.q.rule_a", "p.q.rule_b", "p.q.rule"]) == ["p.q.rule_*"]


def test_no_module_is_called_after_nothing() -> None:
    assert [name for name in KNOWN if name.rpartition(".")[2] in NO_NAMES] == []


def test_no_builtin_is_replaced() -> None:
    """Nothing in the source can: it does not import them."""
    every = {name: [ast.unparse(node) for node, _ in statements(source.tree)] for name, source in KNOWN.items()}
    assert [name for name, found in every.items() if "import builtins" in found] == []


def unbounded(tree: ast.AST) -> list[str]:
    """The functions that keep the result for every argument that they ever had."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and ast.unparse(node.args):
            kinds = {ast.unparse(one) for one in node.decorator_list}
            free = r"(functools\.)?(cache|lru_cache\((maxsize=)?None\))"
            found += [node.name for kind in kinds if re.fullmatch(free, kind)]
    return found


def test_every_cache_has_a_bound() -> None:
    assert {name: found for name, source in KNOWN.items() if (found := unbounded(source.tree))} == {}


@pytest.mark.parametrize(
    ("kind", "arguments", "bounded"),
    [
        ("cache", "x", False),
        ("functools.cache", "*, x", False),
        ("lru_cache(None)", "x", False),
        ("functools.lru_cache(maxsize=None)", "x", False),
        ("cache", "", True),
        ("lru_cache", "x", True),
        ("lru_cache(maxsize=8)", "x", True),
    ],
)
def test_a_cache_without_a_bound_is_noticed(kind: str, arguments: str, bounded: bool) -> None:
    assert unbounded(ast.parse(f"@{kind}\ndef f({arguments}): pass")) == ([] if bounded else ["f"])


SIDE_EFFECTS = """
import os, random, sys, warnings
import hypothesis, numpy, torch, torchvision, onnxruntime, deap.tools, sympy, rich.table, rich.progress, typer
def state():
    random_states = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    settings = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(), sys.gettrace()
    return random_states, settings, dict(os.environ), os.getcwd()
patched = [dict(vars(one)) for one in (torch, torch.nn, torch.fx, torch.nn.Module, torch.Tensor, __builtins__)]
before = state()
import importlib, pkgutil, bnas
for module in pkgutil.walk_packages(bnas.__path__, "bnas."):
    importlib.import_module(module.name)
now = [vars(one) for one in (torch, torch.nn, torch.fx, torch.nn.Module, torch.Tensor, __builtins__)]
same = all(b[key] is a[key] for a, b in zip(patched, now) for key in a)
print("nothing changed" if before == state() and same else "changed")
"""


def test_an_import_changes_nothing_elsewhere() -> None:
    assert _printed(SIDE_EFFECTS) == "nothing changed\n"


@pytest.mark.parametrize("change", ["random.seed(1)", "torch.nn.Module.eval = len", "__builtins__.reversed = list"])
def test_a_change_by_an_import_is_noticed(change: str) -> None:
    code = SIDE_EFFECTS.replace("import importlib, pkgutil, bnas\n", f"import bnas\n{change}\n")
    assert _printed(re.sub(r"for module in .*\n.*\n", "", code)) == "changed\n"


def _printed(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
