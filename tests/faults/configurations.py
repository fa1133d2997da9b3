"""Configurations broken in every way, tried: each works, or ends with an error of bnas that a user understands.

A case is a file and texts for ``--set``. It takes the way of a user's configuration up to the heavy work: the file is
read and checked, the settings of the API are made of it, it is written and read again as a run does, and the job is
made with a tiny model and tiny data. As a script it prints what came of many cases:

    python tests/faults/configurations.py --examples 10000
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import math
import random
import re
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import yaml
from hypothesis import strategies as st

from bnas.config.configuration import Configuration
from bnas.config.file import load_config, parse_configuration
from bnas.config.settings import job_settings
from bnas.passes.errors import BnasError
from bnas.passes.faults import fields_of, sections
from bnas.run.job import Job, Watch
from bnas.run.output import Output, check_output
from bnas.run.runner import job_of
from bnas.run.search import SearchPlan
from bnas.runtime import Evaluator, SuperNetwork, Trainer

LIMIT = 10.0
"""Seconds after which a case counts as a hang."""
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


# What came of a case.


class Hang(BaseException):
    """A case took too long; no `Exception`, which may be caught on the way."""


@dataclass(frozen=True)
class Outcome:
    """What came of a case."""

    kind: str
    """accepted, refused, or a fault of bnas: "stack trace", "hang", "unclear message"."""
    text: str = ""
    """The message; of a stack trace the error and the line of bnas that it comes from."""
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        return self.kind in ("accepted", "refused")


Step = Callable[[Case, Path], Any]


def way(case: Case, folder: Path) -> Job | None:
    """The way of a configuration up to the heavy work; the job, where it is a small one."""
    path = folder / case.name
    configuration = load_config(path, case.changes)
    job_settings(configuration, folder)
    kept = json.loads(json.dumps(configuration.model_dump(mode="json"), allow_nan=False))
    again = parse_configuration(kept, "config.json", folder).model_dump(mode="json")
    assert again == kept, "a run reads another configuration than it wrote"
    if configuration.log_dir is not None:
        check_output(folder / configuration.log_dir, kept)
    sizes = sum(math.prod(one.sample_size) for one in configuration.input_info)
    names = (configuration.model, configuration.data or configuration.dataset or "")
    workers = configuration.data_options.get("workers")
    if sizes <= ENTRIES and all(IMPORTED.fullmatch(name) for name in names) and workers in (0, None, "", -1):
        return job_of(configuration, folder)
    return None


def built(case: Case, folder: Path) -> None:
    """One step more: the super-network, the training and the search are made, and not begun."""
    job = way(case, folder)
    if job is None:
        return
    supernet = SuperNetwork.from_model(job.model, job.example_inputs, job.elasticity, dynamic=job.dynamic)
    plan = SearchPlan(job, Output(folder / "run"), Watch(), supernet)
    plan.searcher(Evaluator(supernet, None, ()), lambda _: 0.0)
    Trainer(supernet, job.stages, job.recipe, **job.training)


def command_line(case: Case, folder: Path) -> None:
    """The same by ``bnas train``, for what is refused: exit status 1 or 2, and the message."""
    from bnas.cli import app

    arguments = [part for change in case.changes for part in ("--set", change)]
    told, before = io.StringIO(), sys.argv
    sys.argv = ["bnas", "train", str(folder / case.name), "-o", str(folder / "run"), *arguments]
    try:
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
            app.main()
        status: Any = 0
    except SystemExit as ended:
        status = ended.code
    finally:
        sys.argv = before
    assert status in (1, 2), f"exit status {status}"
    fault = unclear(told.getvalue().replace("bnas: ", "", 1).rstrip("\n"))
    assert not fault, f"on the terminal: {fault}"


def tried(case: Case, folder: Path, step: Step = way) -> Outcome:
    """What comes of a case in `folder`, which has the code that it names."""
    path = folder / case.name
    path.write_bytes(case.content)
    begun = time.perf_counter()
    try:
        with warnings.catch_warnings(), at_most(LIMIT):
            warnings.simplefilter("ignore")
            step(case, folder)
        found = Outcome("accepted")
    except BnasError as error:
        found = _refused(error)
    except Hang:
        found = Outcome("hang", f"more than {LIMIT:g} s")
    except Exception as error:
        found = Outcome("stack trace", blamed(error))
    finally:
        path.unlink(missing_ok=True)
    return Outcome(found.kind, found.text, time.perf_counter() - begun)


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise `Hang` after so many seconds."""

    def stop(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _refused(error: BnasError) -> Outcome:
    text = str(error) + "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
    fault = unclear(text)
    return Outcome("unclear message", f"{fault}: {text[:300]!r}") if fault else Outcome("refused", text)


INTERNALS = re.compile(
    r"<class |<function |<lambda|object at 0x|Traceback|pydantic|site-packages|recursion depth|set_int_max|codec can't"
    r"|Error\(|\bNoneType\b|Errno|_missing|errors\.py"
)
LONGEST, LINES = 920, 120
"""Characters of a line, in which the place may have 300 and the fault 600; and lines."""


def unclear(text: str) -> str:
    """Why a message is none for a user; nothing where it is one."""
    if found := INTERNALS.search(text):
        return f"it tells of Python: {found[0]!r}"
    if found := re.search(r"[^\S \n]|[\x00-\x09\x0b-\x1f\x7f\ud800-\udfff]", text):
        return f"it has the character {found[0]!r}"
    lines = text.split("\n")
    if any(not line.startswith("  ") for line in lines[1:]):
        return "it is more than one paragraph"
    if len(lines) > LINES or max(map(len, lines)) > LONGEST:
        return f"it has {len(lines)} lines of up to {max(map(len, lines))} characters"
    return "" if text.strip() else "it is empty"


def blamed(error: BaseException) -> str:
    """The error, and the innermost line of bnas that it passed."""
    frames = [one for one in traceback.extract_tb(error.__traceback__) if not one.filename.startswith("<frozen")]
    ours = [one for one in frames if re.search(r"/(bnas|passes|runtime|search)/[\w/]+\.py$", one.filename)]
    last = (ours or frames)[-1]
    return f"{type(error).__name__} at {'/'.join(Path(last.filename).parts[-3:])}:{last.lineno}: {str(error)[:120]!r}"


# Many of them.


@dataclass
class Table:
    """What came of many cases."""

    counts: Counter[str] = field(default_factory=Counter)
    steps: Counter[str] = field(default_factory=Counter)
    kinds: dict[str, list[tuple[Case, Outcome]]] = field(default_factory=dict)
    slowest: tuple[float, Case] | None = None

    def add(self, case: Case, outcome: Outcome) -> None:
        self.counts[outcome.kind] += 1
        if self.slowest is None or outcome.seconds > self.slowest[0]:
            self.slowest = outcome.seconds, case
        if not outcome.good:
            kind = re.sub(r"'.*|\".*|: it has \d+ .*", "", outcome.text)
            self.kinds.setdefault(f"{outcome.kind}: {kind}", []).append((case, outcome))

    def more(self, case: Case, step: str, outcome: Outcome) -> None:
        """What came of another step for a case that was counted already."""
        self.steps[f"{step}, {outcome.kind}"] += 1
        if not outcome.good:
            self.add(case, outcome)

    def lines(self, seconds: float) -> Iterator[str]:
        total = sum(self.counts.values())
        yield f"configurations   {total:>8,}"
        for kind in ("accepted", "refused", "stack trace", "hang", "unclear message"):
            yield f"{kind:<17}{self.counts[kind]:>8,}"
        yield from (f"{name:<32}{number:>6,}" for name, number in sorted(self.steps.items()))
        yield f"seconds          {seconds:>8.1f}  ({1000 * seconds / max(1, total):.1f} ms each)"
        if self.slowest is not None:
            yield f"slowest          {self.slowest[0]:>8.2f} s: {_short(self.slowest[1])}"
        for kind, some in sorted(self.kinds.items(), key=lambda one: -len(one[1])):
            smallest = min((case for case, _ in some), key=_size)
            yield f"\n{len(some)} x {kind}\n    {some[0][1].text[:400]}\n    {_short(smallest)}"


def _size(case: Case) -> int:
    return len(case.content) + sum(map(len, case.changes))


def _short(case: Case) -> str:
    changes = " ".join(f"--set {one[:100]!r}" for one in case.changes)
    return f"{case.name!r} {changes or repr(case.content[:300])}"


def prepared(folder: Path) -> Path:
    """A folder with the code and the images that cases name."""
    (folder / "net.py").write_text(CODE)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (40, 3, 8, 8), dtype=np.uint8)
    np.savez(folder / "images.npz", images=images, labels=np.arange(40) % 10)
    return folder


def many(examples: int, folder: Path, seed: int | None = None, each: Callable[[Case], None] | None = None) -> Table:
    """Try so many cases; without a seed the same ones each time."""
    table = Table()
    prepared(folder)

    @hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        derandomize=seed is None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(cases())
    def run(case: Case) -> None:
        outcome = tried(case, folder)
        table.add(case, outcome)
        further = {"refused": (command_line, 10), "accepted": (built, 3)}.get(outcome.kind)
        if further is not None and table.counts[outcome.kind] % further[1] == 0:
            table.more(case, further[0].__name__, tried(case, folder, further[0]))

    (run if seed is None else hypothesis.seed(seed)(run))()
    return table


def main() -> int:
    """Try as many as asked for and print the table; 1 where there was a fault of bnas."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=None, help="other cases than those of the last time")
    asked = parser.parse_args()
    random.seed(0)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        table = many(asked.examples, Path(folder), asked.seed)
    print("\n".join(table.lines(time.perf_counter() - begun)))
    return int(any(table.counts[kind] for kind in ("stack trace", "hang", "unclear message")))


if __name__ == "__main__":
    sys.exit(main())
