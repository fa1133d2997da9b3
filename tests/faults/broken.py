"""Configurations broken in every way: their structure, their text, and what ``--set`` says."""

from __future__ import annotations

import copy
import json
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from bnas.config.configuration import Configuration
from bnas.passes.faults import fields_of, sections

PUBLISHED = Path(__file__).parents[1] / "support" / "published"
ENDINGS = (".json", ".json5", ".yaml", ".yml")

# What a configuration names: a model and data that are made in a millisecond.

CODE = """
import torch
import bnas

class Net(torch.nn.Module):
    def __init__(self, num_classes=10, **options):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(8)
        self.head = torch.nn.Linear(8, min(num_classes, 64))

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))

def splits(**options):
    batches = [(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))]
    return bnas.Splits(batches, batches, batches)
"""
TINY = {"model": "net.py:Net", "data": "net.py:splits", "input_info": {"sample_size": [1, 3, 8, 8]}}
IMPORTED = re.compile(r"net\.py:\w*|nets?\.py|[a-z]{0,4}|digits|images\.npz.*|[^\w/.]*")
"""Models and data that are loaded: nothing that the test does not know is run or fetched."""
ENTRIES = 100_000
"""An input with more is heavy work."""


@cache
def bases() -> tuple[dict[str, Any], ...]:
    """Configurations of both layouts without a fault: the smallest, the published ones, and those with all keys."""
    published = [json.loads(path.read_text()) | TINY for path in sorted(PUBLISHED.glob("*.json"))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = [Configuration.model_validate(one).model_dump(mode="json") for one in published]
        own = Configuration.model_validate(TINY).model_dump(mode="json")
    told = {
        "elasticity": {"min_width": 4, "width_multipliers": [1, 0.5], "widths": {"conv": [4, 8]}},
        "stages": [{"train_dims": ["width"], "epochs": 2}, {"epochs": 1, "init_lr": 0.01, "reorg_weights": True}],
        "recipe": {"rule": "sandwich", "lr_schedule": {"base_lr": 0.1}, "distillation": {"teacher": "original"}},
        "search": {"algorithm": {"name": "RNSGA2", "aspiration_points": [[0.9, 1e6]]}, "constraints": ["macs <= 60 %"]},
        "objectives": [{"name": "accuracy", "direction": "max"}, {"name": "macs", "direction": "min"}],
        "latency": {"runs": 5, "sizes": {"height": 8}},
        "input_info": [{"sample_size": [2, 3, 8, 8], "type": "float", "range": [0, 1], "dynamic": {"2": "height"}}],
    }
    options = {"validation": 0.2, "test": 8, "mean": [0.4], "std": [0.2, 0.2, 0.2], "augment": ["crop"], "seed": 3}
    images = {"data": "images.npz", "data_options": options | {"size": None, "workers": 0, "mean": [0.4, 0.4, 0.4]}}
    digits = {"data": None, "dataset": "digits", "batch_size": 50, "data_options": {"seed": 1}}
    built_in = TINY | images | {"batch_size": 4, "weights": None, "model_options": {"note": 1}}
    return (TINY, TINY | told, own, built_in, TINY | digits, *published, *peer)


# Values that belong nowhere, or at the edge of what belongs there.

TAGS: tuple[Any, ...] = ("@deep-list", "@deep-mapping", "@number")
"""Stand for text that no value is written as: see `written_deep`."""
EDGES: tuple[Any, ...] = (
    None, True, False, [], {}, [[]], [None], {"": None}, "", " ", "\n", "null", "nan", "1e-4", "0x10", "-1", "1_000",
    0, -1, 1, 2, 3.5, -0.0, 1e-320, 1e308, -1e308, math.nan, math.inf, -math.inf, 255, 256, 65536, 2**31 - 1, 2**31,
    2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**31) - 1, -(2**63) - 1, 10**30, 10**400, "\x00", "a\x00b", "\ud800",
    "\udcff", "é", "名", "\u202e", "a\nb", "x" * 5000, "../..", "/", "~", "%s%n", "{0}", "[red]", "[/]", "cuda:-1",
    "cpu:1", "meta", "accuracy", "latency", "net.py", "net.py:", "net.py:none", ":", "a:b", "digits", "*", "[", "**",
    {"name": "NSGA2"}, {"name": 3}, {"name": []}, [1, 2], [2, 1], ["a", ["b"]], {"a": {"b": 1}}, [{}], [0.5, "x"],
    list(range(300)), {str(k): k for k in range(200)}, *TAGS,
)  # fmt: skip


@cache
def values() -> st.SearchStrategy[Any]:
    """Any value that JSON can hold, often one at an edge."""
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    nested = st.recursive(leaves, lambda one: st.lists(one, max_size=3) | st.dictionaries(keys(), one, max_size=3))
    return st.one_of(st.sampled_from(EDGES), st.sampled_from(EDGES), nested).map(copy.deepcopy)


@cache
def known_keys() -> tuple[str, ...]:
    """All keys of all sections."""
    return tuple(sorted({key for _, section in sections(Configuration) for key in fields_of(section)}))


@cache
def known_sections() -> tuple[tuple[str, type], ...]:
    """All sections, each with its place."""
    return tuple(sections(Configuration))


@cache
def keys() -> st.SearchStrategy[str]:
    """A key: of some section, nearly one, or none."""
    nearly = st.builds(lambda key, at: key[: at % len(key)] + key[at % len(key) + 1 :], _known(), st.integers(0, 30))
    return st.one_of(_known(), nearly, st.sampled_from(["", "a.b", "a b", "é", "a\nb", "x" * 3000, "\x00", "<<", "0"]))


@cache
def _known() -> st.SearchStrategy[str]:
    return st.sampled_from(known_keys())


# A configuration without a fault, changed.

Place = tuple[str | int, ...]


def places(data: Any, place: Place = ()) -> Iterator[Place]:
    """All places in nested data, the whole first."""
    yield place
    entries = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, one in entries:
        yield from places(one, (*place, key))


NAMES = (
    "depth", "width", "kernel", "L1", "geometric mean", "external", "sgd", "AdamW", "rmsprop", "RNSGA2", "random",
    "sandwich", "maximal", "original", "min", "max", "macs <= 1e400", "macs <= nan", "latency <= 3 ms", "x >= -1 %",
    "macs<=1_0", "float16", "bool", "uint8", "long", "manual", "auto", "nonsense", "accuracy", "parameters", "index",
    "CPUExecutionProvider", "CUDAExecutionProvider", "cuda", "mps", "cpu:0", "cpu:99999999999999999999", "x", "self",
    "conv", "net.py:Net", "net.py:splits", "net.py:CODE", "scores.json", ".", "/dev/null", "images.npz", "none.pt2",
)  # fmt: skip
"""Texts that mean something somewhere."""


@st.composite
def changed(draw: st.DrawFn) -> Any:
    """One of `bases` with up to three changes of its structure."""
    data = copy.deepcopy(draw(st.sampled_from(bases())))
    kinds = draw(st.sampled_from((KINDS, MILD)))
    for _ in range(draw(st.sampled_from((0, 1, 1, 1, 2, 3)))):
        data = draw(_changed_once(data, kinds))
    return data


KINDS = ("value", "value", "alike", "alike", "alike", "known", "without", "key", "list", "mapping", "moved")
MILD = ("alike", "alike", "alike", "without")
"""Changes after which a configuration often still has no fault."""
NUMBERS = tuple(one for one in EDGES if isinstance(one, int | float))


def _alike(old: Any) -> st.SearchStrategy[Any]:
    """A value of the same kind, so that more than the kind is looked at."""
    if isinstance(old, bool) or old is None:
        return st.sampled_from((True, False, None, 0, 1, "false"))
    if isinstance(old, int | float):
        near = (old * 2, -old, old / 3, float(old)) if abs(old) < 1e15 else ()
        return st.sampled_from((1, 2, 4, 7, 0.5, str(old), *near, *NUMBERS))
    if isinstance(old, str):
        return st.sampled_from(NAMES) | st.text(max_size=6).map(lambda more: old + more)
    if isinstance(old, list):
        return st.sampled_from((old[:-1], old[1:], old * 2, [*old, None], old[::-1], [old], tuple(old)[:0]))
    return st.dictionaries(keys(), values(), max_size=2)


@st.composite
def _changed_once(draw: st.DrawFn, data: Any, kinds: Sequence[str]) -> Any:
    place = draw(st.sampled_from(list(places(data))))
    kind = draw(st.sampled_from(kinds))
    old = _at(data, place)
    if kind == "alike":
        return _with(data, place, draw(_alike(old)))
    if kind == "value":
        return _with(data, place, draw(values()))
    if kind in ("list", "mapping"):
        return _with(data, place, [old] if kind == "list" else {draw(keys()): old})
    if kind == "moved":
        return _with(data, place, copy.deepcopy(_at(data, draw(st.sampled_from(list(places(data)))))))
    if kind == "without" and place:
        del _at(data, place[:-1])[place[-1]]
    elif kind == "key" and isinstance(old, dict):
        old[draw(keys())] = draw(values())
    elif isinstance(data, dict):
        name, section = draw(st.sampled_from(known_sections()))
        inside = _made(data, [part.removesuffix("[n]") for part in name.split(".") if part])
        if isinstance(inside, dict) and fields_of(section):
            inside[draw(st.sampled_from(sorted(fields_of(section))))] = draw(values())
    return data


def _made(data: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        if not isinstance(data, dict):
            return None
        data = data.setdefault(key, {})
        data = data[0] if isinstance(data, list) and data else data
    return data


def _at(data: Any, place: Place) -> Any:
    for key in place:
        data = data[key]
    return data


def _with(data: Any, place: Place, value: Any) -> Any:
    if not place:
        return value
    _at(data, place[:-1])[place[-1]] = value
    return data


# The configuration as text, and the text damaged.


def as_json(data: Any, twice: str = "") -> str:
    """As JSON; a key called `twice` stands there twice."""
    text = json.dumps(data, indent=2)
    return re.sub(rf'("{re.escape(twice)}": )', r"\1 1, \1", text) if twice else text


def as_json5(data: Any, _: str = "") -> str:
    """With comments, single quotes, keys without quotes, and commas at the end."""
    if isinstance(data, dict):
        inside = ", ".join(f"{key if key.isidentifier() else json.dumps(key)}: {as_json5(data[key])}" for key in data)
        return "{ /* a */ " + inside + (", }" if data else "} // b\n")
    if isinstance(data, list):
        return "[" + "".join(f"{as_json5(one)}, " for one in data) + "]"
    if isinstance(data, str) and data.isprintable() and not {"'", "\\"} & set(data):
        return f"'{data}'"
    return hex(data) if type(data) is int and data > 9 else json.dumps(data)


def as_yaml(data: Any, twice: str = "") -> str:
    """As YAML in blocks; with `twice` in one line."""
    return str(yaml.safe_dump(data, default_flow_style=bool(twice), allow_unicode=not twice, sort_keys=False))


WRITERS: dict[str, Callable[[Any, str], str]] = {
    ".json": as_json, ".json5": as_json5, ".yaml": as_yaml, ".yml": as_yaml
}  # fmt: skip


def written_deep(text: str, depth: int) -> str:
    """`text` with lists, mappings and digits of this depth where `TAGS` stand."""
    texts = {"list": "[" * depth + "]" * depth, "mapping": '{"a":' * depth + "1" + "}" * depth, "number": "9" * depth}
    short = {"deep-list": "list", "deep-mapping": "mapping", "number": "number"}
    return re.sub(r"""["']?@(deep-list|deep-mapping|number)["']?""", lambda found: texts[short[found[1]]], text)


HEAD = "model: net.py:Net\ndata: net.py:splits\ninput_info: {sample_size: [1, 3, 8, 8]}\n"
LAUGHS = "a0: &a0 [1, 1]\n" + "".join(f"a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * 9) + "]\n" for n in range(1, 12))
TEXTS: tuple[str, ...] = (
    "", "\n", "#", "//", "/*", "null", "[]", "3", '"', "{", "}", "{}{}", "{]", "---\n---\n", "%YAML 9.9\n---\n", "\t",
    "- a\n- b", "a: b: c", "? [a]\n: 1", "? {a: b}\n: 1", "*none", "&a [*a]", "model: &a\n  b: *a\n", "<<: 3", "!!map",
    "!!python/object/apply:os.getcwd []", "!!python/name:os.system", "!<x> 1", "'\\", '{"a": "\\uZZZZ"}', "{'a': 1e}",
    HEAD + LAUGHS, HEAD + LAUGHS + "model_options: {a: *a11}\n", HEAD + LAUGHS + "stages: *a11\n",
    HEAD + "model_options: &a {b: *a}\n", HEAD + "data_options: {a: 2001-01-01}\n", HEAD + "log_dir: 2001-99-99\n",
    HEAD + "model_options: {a: !!set {x, y}}\n", HEAD + "model_options: {a: !!binary /w==}\n", HEAD + "1: 2\n",
    HEAD + "model_options: {1: 2, null: 3, 1.5: 4, true: 5}\n", HEAD + "model_options: {? [1] : 2}\n",
    HEAD + "model_options: {a: !!omap [x: 1]}\n", HEAD + "model_options: {a: !!pairs [x: 1]}\n", HEAD + "<<: [1]\n",
    HEAD + "model_options: {a: 2001-12-14t21:59:43.10-05:00, b: 190:20:30, c: 0o7, d: .inf, e: ~}\n",
    HEAD + "elasticity: &e {min_width: 8}\nrecipe: *e\n", HEAD + "base: &b {epochs: 1}\nstages: [{<<: *b}]\n",
    HEAD + "stages: &s [{epochs: 1}, *s]\n", HEAD + "search: {seed: 1:30}\n", HEAD + "device: !!str 3\n",
)  # fmt: skip


@st.composite
def contents(draw: st.DrawFn, ending: str) -> bytes:
    """What is in the file: mostly a changed configuration, sometimes damaged, sometimes something else."""
    kind = draw(st.sampled_from(("whole",) * 12 + ("damaged", "damaged", "text", "bytes")))
    if kind == "bytes":
        return draw(
            st.sampled_from((b"\x89PNG\r\n\x1a\n\0\0", b"PK\3\4", b"\xff\xfe{\0}\0", b"\xef\xbb\xbf{}", b"\0" * 99))
        )
    if kind == "text":
        return draw(st.sampled_from(TEXTS) | st.text(max_size=40)).encode("utf-8", "surrogatepass")
    twice = draw(st.sampled_from(("", "", "", "epochs", "model", "search")))
    text = WRITERS[ending](draw(changed()), twice)
    data = written_deep(text, draw(st.sampled_from((3, 30, 400, 5000, 100_000)))).encode("utf-8", "surrogatepass")
    if kind == "whole":
        return data
    at, piece = draw(st.integers(0, len(data))), draw(st.sampled_from((b"", b"\0", b"\xff", b'"', b"}", b",", b":")))
    return data[:at] + piece + (data[at + 1 :] if draw(st.booleans()) else b"")


@cache
def places_of_bases() -> st.SearchStrategy[Place]:
    """Places of configurations without a fault."""
    return st.sampled_from([place for base in bases() for place in places(base) if place])


@st.composite
def settings_of_keys(draw: st.DrawFn) -> str:
    """A text for ``--set``."""
    place = draw(places_of_bases() | st.lists(keys() | st.integers(-1, 3), min_size=1, max_size=4))
    key = "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in place).removeprefix(".")
    depth = draw(st.sampled_from((3, 400, 100_000)))
    value = written_deep(draw(values().map(json.dumps) | st.text(max_size=9)), depth)
    form = draw(st.sampled_from(("{}={}",) * 8 + ("{}{}", "{}", "={1}", "{0}.x={1}", "{0}[0]={1}", " {}={}", "{}=={}")))
    return form.format(key, value)


@dataclass(frozen=True)
class Case:
    """A file, and what ``--set`` says."""

    name: str
    content: bytes
    changes: tuple[str, ...] = ()


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Files of all endings; a third comes with texts for ``--set``, mostly those without a fault of their own."""
    ending = draw(st.sampled_from((".json", ".json", *ENDINGS)))
    if draw(st.sampled_from((True, False, False))):
        changes = tuple(draw(st.lists(settings_of_keys(), min_size=1, max_size=3)))
        return Case(f"c{ending}", as_json(draw(st.sampled_from(bases()))).encode(), changes)
    name = draw(st.sampled_from((f"c{ending}",) * 20 + ("c.txt", "c", f"[b]é {ending}", f"a\nb{ending}")))
    return Case(name, draw(contents(ending)))
