"""Names of values: those of this project, module paths, and BootstrapNAS's scope names."""

from __future__ import annotations

import operator
import re

from torch.fx import Node

from .errors import ElasticityError
from .ir import IR
from .ops.registry import OPERATORS, operator_name
from .patterns import module_path, near_names


def find_value(ir: IR, name: str) -> Node:
    """The value that `name` stands for.

    It may be the name of a graph node (``layer1_1_relu_2``), the path of a module (``layer1.1``: the last value that
    is computed in it), or a scope of BootstrapNAS (``Net/Sequential[layer1]/Block[1]/ReLU[relu]/relu__2``:
    the third call of ``relu_`` in the module ``layer1.1.relu``; names of classes are not compared).

    Raises:
        ElasticityError: there is no such value; names the nearest ones.
    """
    nodes = [node for node in ir.graph.nodes if node.op not in ("output", "get_attr")]
    found = _scoped(ir, nodes, name) if "/" in name else _named(nodes, name)
    if found is None:
        known = list(dict.fromkeys(_spelling_of(node) for node in nodes))
        near = ", ".join(near_names(spelling(name), known))
        raise ElasticityError(f"skipped_blocks: there is no value {name!r} in the model; the nearest are {near}")
    return found


def _named(nodes: list[Node], name: str) -> Node | None:
    inside = [n for n in nodes if _is_in(n, name)]
    return next((node for node in nodes if node.name == name), inside[-1] if inside else None)


def _is_in(node: Node, path: str) -> bool:
    scope = str(node.meta.get("scope", ""))
    return scope == path or scope.startswith(f"{path}.")


def _scoped(ir: IR, nodes: list[Node], name: str) -> Node | None:
    """The call that a scope of BootstrapNAS names: modules in brackets, then the operator and which call of it."""
    path, call = module_path(ir.root, name), name.rpartition("/")[2]
    op, _, number = call.rpartition("_")
    if not number.isdecimal():
        return None
    calls = [node for node in nodes if str(node.meta.get("scope", "")) == path]
    calls = [node for node in calls if node.op == "call_module" or _operator(ir, node) == _peer_operator(op)]
    return calls[int(number)] if int(number) < len(calls) else None


def _operator(ir: IR, node: Node) -> str:
    call = ir.calls.get(node)
    return "" if call is None else operator_name(call.op)


def _peer_operator(name: str) -> str:
    """``relu_`` is relu, and ``__iadd__`` is add."""
    plain = name.strip("_")
    return operator_name(OPERATORS.canonical(getattr(operator, plain, plain)))


def spelling(name: str) -> str:
    """A scope of BootstrapNAS as a path, to compare it with ours."""
    parts = re.findall(r"\[([^\]]*)\]", name)
    return ".".join(parts) if parts else name


def _spelling_of(node: Node) -> str:
    return str(node.meta.get("scope") or node.name)
