"""What bnas makes of models of other libraries and tasks: ``python tests/benchmarks/zoo_other.py [NAME ...]``.

Each model has a process of its own with a limit of time; what was found until then is kept. `zoo_other_models` says
what to install. Only the public interface of bnas is used, but for the share of rigid parameters.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from zoo_other_models import ENTRIES, Entry

import bnas
from bnas import SuperNetwork
from bnas.passes import InputError
from bnas.passes.rigidity import rigid_share

ROOT = Path(__file__).resolve().parents[2]
TABLE, ROWS = ROOT / "docs/zoo_other.md", ROOT / "runs/zoo_other"
SAME = 1e-4
"""Largest relative difference of outputs that passes for rounding."""
SAME_STEP = 1e-3
"""The same of gradients and statistics after a training step."""
EXACT = 1e-5
"""The same of the oracle: in double precision, but for what a model itself computes in single precision."""
SUBNETS = 2


@dataclass
class Row:
    """What was found of one model; texts are empty where nothing was tried."""

    name: str
    library: str
    task: str
    captured: str = ""
    example: str = ""
    """Outputs of the maximal program against the model's own, in evaluation mode: at the example's size."""
    batch: str = ""
    other: str = ""
    state: str = ""
    """What from_model changed of the user's model or of PyTorch."""
    widths: int | None = None
    blocks: int | None = None
    rigid: float | None = None
    dynamic: str = ""
    oracle: str = ""
    """`bnas.verify` of the minimal and random sub-networks."""
    step: str = ""
    """A training step of the maximal program against the model's own."""
    export: str = ""
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> list[str]:
        """Where outputs differ although no error was raised."""
        return [what for what in ("example", "batch", "other") if getattr(self, what).startswith("WRONG")]


def call(module: nn.Module, inputs: Any) -> Any:
    """What the module makes of a tensor, a tuple of positional or a dict of keyword inputs."""
    if isinstance(inputs, dict):
        return module(**inputs)
    return module(*inputs) if isinstance(inputs, tuple) else module(inputs)


def call_program(module: nn.Module, inputs: Any) -> Any:
    """The same of a program, which takes the arguments that hold tensors: plain values are constants of its graph."""
    if isinstance(inputs, dict):
        return module(**{name: value for name, value in inputs.items() if tensors_of(value)})
    return module(*(value for value in inputs if tensors_of(value))) if isinstance(inputs, tuple) else module(inputs)


def tensors_of(output: Any) -> list[Tensor]:
    """The tensors among the outputs."""
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def difference(found: Any, expected: Any) -> float:
    """The largest difference of outputs, relative to the largest entry of each; infinite if they have another form."""
    pairs = tensors_of(found), tensors_of(expected)
    if len(pairs[0]) != len(pairs[1]):
        return math.inf
    return max((_difference(a, b) for a, b in zip(*pairs, strict=True)), default=0.0)


def _difference(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return math.inf
    if not expected.is_floating_point():
        return 0.0 if torch.equal(found, expected) else math.inf
    if torch.equal(found.isfinite(), expected.isfinite()) and expected.numel():
        ends = [torch.where(expected.isfinite(), t, 0) for t in (found, expected)]
        return float((ends[0] - ends[1]).abs().max() / ends[1].abs().max().clamp_min(1e-12))
    return math.inf if expected.numel() else 0.0


def judged(error: float, allowed: float) -> str:
    """The error, marked where it is no rounding."""
    return f"{'' if error <= allowed else 'WRONG '}{error:.0e}" if error else "0"


FOLDERS = re.compile(r"/\S*?/(?:site-packages/|(?=tests/benchmarks/))")
"""What leads to a file of a library or of ours on this machine: not for a table that others read."""


def first_line(error: BaseException) -> str:
    """Type and first line of an error, with paths from the package on."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {FOLDERS.sub('', lines[0])}"[:300]


def attempt(check: Callable[[], str]) -> str:
    """What `check` says, or the error that it raised."""
    try:
        return check()
    except InputError as error:
        return f"refused: {first_line(error)}"
    except Exception as error:
        return f"error: {first_line(error)}"


State = dict[str, Any]


def state_of(model: nn.Module) -> State:
    """All that can be read of a model: tensors by identity and value, attributes, hooks and modes; and of PyTorch."""
    found: State = {"(random state)": torch.get_rng_state().numpy().tobytes()}
    found |= {"(number type)": torch.get_default_dtype(), "(gradients)": torch.is_grad_enabled()}
    for path, module in model.named_modules(remove_duplicate=False):
        found[f"{path}:type"] = type(module)
        for name, value in vars(module).items():
            found[f"{path}.{name}"] = _frozen(value)
    return found


def _frozen(value: Any, depth: int = 5) -> Any:
    """A value that is equal later if nothing has changed."""
    if isinstance(value, Tensor):
        known = None if value.is_meta or value.numel() == 0 else value.detach().clone().cpu().numpy().tobytes()
        return id(value), value.requires_grad, tuple(value.shape), value.dtype, known, id(value.grad)
    if isinstance(value, dict) and depth:
        return id(value), [(str(k), _frozen(v, depth - 1)) for k, v in value.items()]
    if isinstance(value, list | tuple) and depth:
        return [_frozen(v, depth - 1) for v in value]
    if isinstance(value, weakref.ref):
        return id(value())
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    return (type(value).__name__, value) if isinstance(value, str | int | float | bool | None) else id(value)


def changed(before: State, after: State) -> str:
    """What differs, or nothing."""
    names = [n for n in {**before, **after} if n not in before or n not in after or before[n] != after[n]]
    return f"{len(names)}: {', '.join(names[:3])}" if names else ""


def measure(entry: Entry, show: Callable[[Row], None]) -> Row:
    """The row of one model; `show` is given it whenever something was found."""
    start, row = time.perf_counter(), Row(entry.name, entry.library, entry.task)

    def note(**found: Any) -> None:
        for name, value in found.items():
            setattr(row, name, value)
        row.seconds = time.perf_counter() - start
        show(row)

    try:
        (model, inputs), reference = entry.make(), entry.build()
    except ImportError as error:
        note(captured=f"skipped: {first_line(error)}")
        return row
    supernet = capture(model, inputs, note)
    if supernet is None:
        return row
    note(**sizes(supernet))
    fidelity(entry, reference, supernet, inputs, note)
    note(oracle=attempt(lambda: verified(entry, supernet)))
    note(export=attempt(lambda: exported(supernet, inputs)))
    note(step=attempt(lambda: trained(entry, supernet, inputs)))
    return row


def capture(model: nn.Module, inputs: Any, note: Callable[..., None]) -> SuperNetwork | None:
    """The super-network of `model`, if there is one; whether the model was left as it was is noted in any case."""
    before, supernet = state_of(model), None
    try:
        supernet = SuperNetwork.from_model(model, inputs)
        said = "ok"
    except Exception as error:
        said = first_line(error)
    note(captured=said, state=changed(before, state_of(model)))
    return supernet


def sizes(supernet: SuperNetwork) -> dict[str, Any]:
    """What is elastic."""
    rigid = sum(rigid_share(supernet.skeleton.types).values())
    names = {name: None for axes in supernet.dynamic.values() for name in axes.values()}
    found = {"widths": len(supernet.space.widths), "blocks": len(supernet.space.blocks), "rigid": rigid}
    return found | {"dynamic": ", ".join(names)}


def fidelity(
    entry: Entry, reference: nn.Module, supernet: SuperNetwork, inputs: Any, note: Callable[..., None]
) -> None:
    """Compare the maximal program with the model's own forward, at three sizes."""

    def compared(given: Any) -> str:
        with torch.no_grad():
            expected = call(reference, given)
            found = call_program(supernet.eval().program(supernet.space.maximal()), given)
        return judged(difference(found, expected), SAME)

    note(example=attempt(lambda: compared(inputs)))
    if entry.batched:
        note(batch=attempt(lambda: compared(entry.inputs(3))))
    if entry.other:
        note(other=attempt(lambda: compared(entry.make_other())))


def subnets(supernet: SuperNetwork) -> list[Any]:
    """The minimal sub-network and random ones."""
    generator = np.random.default_rng(0)
    return [supernet.space.minimal(), *(supernet.space.sample(generator) for _ in range(SUBNETS))]


def verified(entry: Entry, supernet: SuperNetwork) -> str:
    """The largest error of sub-networks against the oracle."""
    errors = [
        bnas.verify(supernet.model, supernet, subnet, entry.inputs(), tolerance=math.inf)
        for subnet in subnets(supernet)
    ]
    return judged(max(errors), EXACT)


def exported(supernet: SuperNetwork, inputs: Any) -> str:
    """How ONNX came of an extracted sub-network; `export_onnx` compares what ONNX Runtime makes of it."""
    subnet = subnets(supernet)[-1]
    part = supernet.extract(subnet)
    with torch.no_grad():
        apart = difference(call_program(part, inputs), call_program(supernet.eval().program(subnet), inputs))
    if not apart <= SAME:
        return f"WRONG extracted module differs from the program by {apart:.0e}"
    tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = bnas.export_onnx(part, Path(folder) / "model.onnx", tensors)
    return f"fallback: {report.fallback}"[:200] if report.fallback else "ok"


def trained(entry: Entry, supernet: SuperNetwork, inputs: Any) -> str:
    """Gradients and statistics of a training step of the maximal program, against the model's own."""
    reference = entry.build().train()
    program = supernet.train().program(supernet.space.maximal())
    stepped = [_step(reference, inputs, call), _step(program, inputs, call_program)]
    if stepped[0] is None or not math.isfinite(stepped[0]):
        return "error: the model's own loss is not finite"
    loss = abs(stepped[0] - (stepped[1] or 0.0)) / max(abs(stepped[0]), 1e-12)
    worst = max(loss, _gradients(reference, supernet.model), _statistics(reference, supernet.model))
    return judged(worst, SAME_STEP)


def _step(module: nn.Module, inputs: Any, run: Callable[[nn.Module, Any], Any]) -> float | None:
    torch.manual_seed(2)
    np.random.seed(2)
    loss = sum((one**2).sum() for one in tensors_of(run(module, inputs)) if one.is_floating_point())
    if not isinstance(loss, Tensor):
        return None
    loss.backward()
    return float(loss.detach())


def _gradients(reference: nn.Module, model: nn.Module) -> float:
    """The largest difference of gradients, relative to the largest gradient of all."""
    theirs = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
    ours = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    largest = max((float(g.abs().max()) for g in theirs.values() if g.numel()), default=1.0)
    apart = [float((ours.get(n, torch.zeros_like(g)) - g).abs().max()) for n, g in theirs.items() if g.numel()]
    apart += [float(g.abs().max()) for name, g in ours.items() if name not in theirs and g.numel()]
    return max(apart, default=0.0) / max(largest, 1e-12)


def _statistics(reference: nn.Module, model: nn.Module) -> float:
    buffers = dict(model.named_buffers())
    pairs = [(buffers[n], b) for n, b in reference.named_buffers() if n in buffers and "running" in n]
    return max((_difference(a, b) for a, b in pairs), default=0.0)


def run(names: list[str], resume: bool, limit: float, jobs: int) -> Iterator[Row]:
    """The rows of `names`, each measured in its own process."""
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(lambda name: run_one(name, resume, limit), names)


def run_one(name: str, resume: bool, limit: float) -> Row:
    """The row of one model, from a process of its own, or what that found before it failed."""
    path, entry = ROWS / f"{name}.json", ENTRIES[name]
    if resume and path.exists():
        return read_row(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--row", name]
    why, start = "", time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        if done.returncode:
            why = (done.stderr.strip().splitlines()[-1:] or [""])[0] or f"ended with {done.returncode}"
    except subprocess.TimeoutExpired:
        why = f"took more than {limit:.0f} s"
    row = read_row(path) if path.exists() else Row(name, entry.library, entry.task, captured=f"error: {why}")
    if why:
        row.notes.append(why[:200])
        row.seconds = time.perf_counter() - start
        path.write_text(json.dumps(asdict(row)))
    return row


def read_row(path: Path) -> Row:
    """The row that was written to `path`."""
    return Row(**json.loads(path.read_text()))


HEAD = (
    "| model | library | task | captured | example | batch | other size | state changed | widths | blocks | rigid |"
    " dynamic | oracle | step | ONNX | s |\n|---|---|---|---|---|---|---|---|---:|---:|---:|---|---|---|---|---:|"
)


def shown(row: Row) -> str:
    """The row of the table, on one line."""
    rigid = "" if row.rigid is None else f"{row.rigid:.0%}"
    counts = ["" if n is None else str(n) for n in (row.widths, row.blocks)]
    notes = "; ".join(row.notes)
    cells = [row.name, row.library, row.task, row.captured + (f" ({notes})" if notes else "")]
    cells += [row.example, row.batch, row.other, row.state, *counts, rigid, row.dynamic, row.oracle, row.step]
    cells += [row.export, f"{row.seconds:.0f}"]
    return f"| {' | '.join(cell.replace('|', '/') or '-' for cell in cells)} |"


def head(rows: list[Row]) -> str:
    """What the rows say together."""
    tried = [row for row in rows if not row.captured.startswith("skipped")]
    got = [row for row in tried if row.captured == "ok"]

    def share(name: str, good: Callable[[str], bool]) -> str:
        said = [getattr(row, name) for row in got if getattr(row, name)]
        return f"{sum(map(good, said))} of {len(said)}"

    def fine(text: str) -> bool:
        return not text.startswith(("WRONG", "error", "refused"))

    lines = [
        f"**captured**: {len(got)} of {len(tried)}; {len(rows) - len(tried)} skipped.",
        f"**silently wrong**: {sum(bool(row.wrong) for row in got)}.",
        f"**user's state changed**: {sum(bool(row.state) for row in tried)}.",
        f"**right at the example's size**: {share('example', fine)}; **at another batch**: {share('batch', fine)}; "
        f"**at another size**: {share('other', fine)}.",
        f"**some width elastic**: {sum(bool(row.widths) for row in got)} of {len(got)}.",
        f"**sub-networks equal the oracle**: {share('oracle', fine)}.",
        f"**training step equals the model's**: {share('step', fine)}.",
        f"**ONNX**: {share('export', lambda text: text == 'ok')} lowered, "
        f"{share('export', lambda text: text.startswith('fallback'))} by torch.onnx.export.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def versions() -> str:
    """The versions of the libraries that are there."""
    found = []
    for name in ("bnas", "torch", "torchvision", "timm", "transformers", "diffusers", "segmentation-models-pytorch"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


def page(rows: list[Row]) -> str:
    """The document."""
    return f"""# The zoo of other libraries

{len(rows)} small models with random weights. Written by `tests/benchmarks/zoo_other.py` on {date.today()} with
{versions()}, Python {platform.python_version()}, one thread.

{head(rows)}

- **captured**: whether `SuperNetwork.from_model` returned a super-network; otherwise the error.
- **example**, **batch**, **other size**: largest relative difference between the maximal program and the model's own
  forward; WRONG if it is more than {SAME:.0e} without an error. A dash means that nothing was tried or found, such as
  for a model that accepts no other size.
- **oracle**: largest error by `bnas.verify` of the minimal and {SUBNETS} random sub-networks; WRONG above {EXACT:.0e}.
- **step**: loss, gradients and running statistics of a training step; WRONG above {SAME_STEP:.0e}.
- **ONNX**: a random extracted sub-network, compared with its ONNX file on ONNX Runtime.

{HEAD}
""" + "".join(f"{shown(row)}\n" for row in rows)


def chosen(arguments: argparse.Namespace) -> list[str]:
    """The names that were asked for."""
    unknown = sorted(set(arguments.names) - set(ENTRIES))
    if unknown:
        raise SystemExit(f"{unknown[0]!r} is not in the zoo; there are {', '.join(ENTRIES)}")
    names = arguments.names or list(ENTRIES)
    return [name for name in names if fnmatch.fnmatch(name, arguments.only)]


def write_row(name: str) -> None:
    """Measure a model; the file of its row is written anew whenever something was found."""
    path = ROWS / f"{name}.json"
    warnings.simplefilter("ignore")
    measure(ENTRIES[name], lambda row: (path.write_text(json.dumps(asdict(row))), None)[1])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="models; by default all")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="only models whose name is like 'hf-*'")
    parser.add_argument("--resume", action="store_true", help="take rows that were measured before from runs/zoo_other")
    parser.add_argument("--write", nargs="?", const=TABLE, type=Path, metavar="FILE", help="write docs/zoo_other.md")
    parser.add_argument("--limit", type=float, default=90, metavar="SECONDS", help="for each model; default 90")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--row", metavar="NAME", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.row:
        write_row(arguments.row)
        return
    print(HEAD)
    rows = []
    for row in run(chosen(arguments), arguments.resume, arguments.limit, arguments.jobs):
        print(shown(row), flush=True)
        rows.append(row)
    print(head(rows))
    if arguments.write:
        arguments.write.write_text(page(rows))
    wrong = sum(bool(row.wrong or row.state) for row in rows)
    raise SystemExit(f"{wrong} of {len(rows)} models are silently wrong or were changed" if wrong else 0)


if __name__ == "__main__":
    main()
