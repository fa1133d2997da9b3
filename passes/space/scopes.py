"""Parts of a model, named by patterns or in BootstrapNAS's spelling, and the vetoes of the settings."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from torch.fx import Node

from bnas.passes.axes.types import AxisTypes
from bnas.passes.errors import ElasticityError
from bnas.passes.frontend.ir import IR

from .blocks import Block
from .elasticity import Elasticity
from .kernels import Kernel

# Parts of a model, named by patterns on module paths or in BootstrapNAS's spelling.


@dataclass(frozen=True)
class Scopes:
    """Modules with everything inside them, and single parameters."""

    paths: frozenset[str]
    tensors: Mapping[str, tuple[str, ...]]
    """All names of each parameter and buffer, by its first name."""

    def covers(self, path: str) -> bool:
        """Whether the module or tensor called `path` is one of these or lies in one."""
        return any(one in self.paths for one in _ancestors(path))

    def covers_tensor(self, name: str) -> bool:
        """Whether a tensor is one of these or lies in one, by any of its names: it may be tied."""
        return any(self.covers(one) for one in self.tensors.get(name, (name,)))

    def covers_node(self, node: Node) -> bool:
        """Whether a node of the graph was made by code in one of these."""
        return self.covers(str(node.target) if node.op == "call_module" else str(node.meta.get("scope", "")))


def find_scopes(ir: IR, setting: str, patterns: Sequence[str], *, parameters: bool = False) -> Scopes:
    """Return the modules and parameters that `patterns` name in a model.

    A pattern is a glob on module paths (``layer*.conv1``; a star also stands for dots), a path of BootstrapNAS
    (``Net/Sequential[layer1]/Block[1]/ReLU[relu]/relu__2``) or one of its regular expressions, which start
    with ``{re}`` and are searched for in such paths. A module stands for everything inside it.

    Args:
        ir: the traced model.
        setting: the name of the setting, for errors.
        patterns: the patterns.
        parameters: whether they may also name single parameters and buffers.

    Raises:
        ElasticityError: a pattern matches nothing; names the nearest paths.
    """
    modules = dict(ir.root.named_modules(remove_duplicate=False))
    tensors: dict[str, tuple[str, ...]] = {}
    for name, first in ir.aliases.items():
        tensors[first] = (*tensors.get(first, ()), name)
    names = [*modules, *ir.aliases] if parameters else list(modules)
    found = {name for pattern in patterns for name in _matches(ir.root, setting, pattern, names)}
    same = {id(modules[name]) for name in found if name in modules}
    return Scopes(frozenset(found | {name for name, module in modules.items() if id(module) in same}), tensors)


def near_names(name: str, known: Sequence[str]) -> list[str]:
    """Return the three most similar names in `known`, for an error."""
    return difflib.get_close_matches(name, known, n=3, cutoff=0.0)


def nearest(setting: str, name: str, known: Sequence[str], what: str) -> ElasticityError:
    """Return the error for an unknown name, with the most similar names."""
    near = ", ".join(near_names(name, known)) or "none"
    return ElasticityError(f"{setting}: {name!r} matches no {what}; the nearest are {near}")


def _matches(root: nn.Module, setting: str, pattern: str, names: Sequence[str]) -> list[str]:
    if pattern.startswith("{re}"):
        expression = re.compile(pattern.removeprefix("{re}").replace("NNCF", ""))
        found = [name for name in names if expression.search(scope_name(root, name))]
    else:
        path = module_path(root, pattern)
        found = [name for name in names if fnmatchcase(name, path)]
    if not found:
        raise nearest(setting, pattern, [name for name in names if name], "part of the model")
    return found


def module_path(root: nn.Module, name: str) -> str:
    """Return the module path of a BootstrapNAS scope, whose last part may be an operator; other names unchanged."""
    if "/" not in name:
        return "" if name == type(root).__name__ else name
    inside = (re.fullmatch(r"\w+\[(.+)\]", part) for part in name.split("/")[1:])
    return ".".join(match[1] for match in inside if match)


def scope_name(root: nn.Module, path: str) -> str:
    """Return BootstrapNAS's scope for a module path, or for the module of a tensor's name."""
    parts, module = [type(root).__name__], root
    for name in path.split(".") if path else ():
        if name not in module._modules:
            break
        child = module._modules[name]
        assert child is not None
        parts.append(f"{type(child).__name__}[{name}]")
        module = child
    return "/".join(parts)


def _ancestors(path: str) -> Iterator[str]:
    yield path
    while path:
        path = path.rpartition(".")[0]
        yield path


# Vetoes: parts that the settings keep unchanged by pins, ignored scopes or target scopes.


@dataclass(frozen=True)
class Vetoes:
    """Each method returns why a part may not change, or None if the settings allow it."""

    pinned: Scopes
    ignored: Scopes
    targets: Scopes | None

    def on_width(self, members: Sequence[str], makers: Sequence[str]) -> str | None:
        """Veto on a width that occurs in the tensors `members`, of which `makers` produce its channels."""
        if any(self.pinned.covers_tensor(name) for name in members):
            return "pinned by a setting"
        if any(self.ignored.covers_tensor(name) for name in makers):
            return "a layer of ignored_scopes produces it"
        if self.targets is not None and not all(self.targets.covers_tensor(name) for name in makers):
            return "layers outside target_scopes also produce it"
        return None

    def on_block(self, types: AxisTypes, block: Block) -> str | None:
        """Veto on a block, whose skipping removes everything inside it."""
        named = types.users.items() if self.pinned.paths else ()
        pinned = {node for name, users in named if self.pinned.covers_tensor(name) for node in users}
        if any(node in pinned or self.pinned.covers_node(node) for node in block.nodes):
            return "something inside it is pinned by a setting"
        if any(self.ignored.covers_node(node) for node in block.nodes):
            return "it contains a part of ignored_scopes"
        if self.targets is not None and not all(self.targets.covers_node(node) for node in block.nodes):
            return "it is not inside target_scopes"
        return None

    def on_kernel(self, kernel: Kernel) -> str | None:
        """Veto on a kernel, by any name of its weight."""
        return self.on_width([kernel.weight], [kernel.weight])


def find_vetoes(ir: IR, elasticity: Elasticity) -> Vetoes:
    """Return the vetoes of the settings.

    Raises:
        ElasticityError: a pattern matches nothing; names the nearest paths.
    """
    pinned = find_scopes(ir, "pin", elasticity.pin, parameters=True)
    ignored = find_scopes(ir, "ignored_scopes", elasticity.ignored_scopes)
    targets = find_scopes(ir, "target_scopes", elasticity.target_scopes) if elasticity.target_scopes else None
    return Vetoes(pinned, ignored, targets)
