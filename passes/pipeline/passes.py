"""`Pass` and `Pipeline`: each pass maps an analysis to an analysis, and the pipeline checks every result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from bnas.passes.axes.analysis import analyse
from bnas.passes.errors import Diagnostic, PassError, add_note
from bnas.passes.frontend.copies import deeper
from bnas.passes.frontend.front import trace
from bnas.passes.space.choices import choose
from bnas.passes.space.depth import skippable_blocks
from bnas.passes.space.kernels import Kernels, find_kernels
from bnas.passes.space.widths import tie_groups

from .analysis import Analysis, difference, problems
from .dump import describe
from .variants import in_training


@dataclass(frozen=True)
class PassResult:
    """The result of a pass."""

    analysis: Analysis
    modified: bool
    """Whether the pass changed anything; must be exact."""
    refusals: tuple[Diagnostic, ...] = ()
    """Parts that were left unchanged, with the reason."""


@dataclass(frozen=True)
class Pass(ABC):
    """A step of the compiler: a frozen dataclass whose fields are its settings. It keeps no state between runs.

    It matches everything first and changes afterwards, in copies: `IR.copy_graph`, `Analysis.with_graph`. Axis types
    alone are refined in place, by `AxisTypes.pin` (a veto) and `AxisTypes.unify` (a tie).
    """

    name: ClassVar[str]
    """Name of the pass, such as "find-blocks"; unique in a pipeline."""
    needs: ClassVar[tuple[str, ...]] = ("ir",)
    """Parts of the analysis that must exist before the pass."""
    gives: ClassVar[tuple[str, ...]] = ()
    """Parts of the analysis that the pass provides."""
    keeps_outputs: ClassVar[bool] = True
    """Whether a changed graph must compute the same as before; the pipeline then measures it."""

    @abstractmethod
    def apply(self, analysis: Analysis) -> PassResult:
        """Return the analysis after this pass; `analysis` itself if there was nothing to do."""

    def broken(self, before: Analysis, after: Analysis) -> Iterator[str]:
        """Return the promises of this pass that `after` breaks. Override it for a pass with additional promises."""
        yield from ()


TOLERANCE = 1e-9
"""Allowed relative difference, in double precision, of outputs that a pass promises to keep."""


@dataclass(frozen=True)
class Pipeline:
    """Passes in the order in which they run.

    Raises:
        PassError: An entry is not a pass with a name, or two passes have the same name.
    """

    passes: tuple[Pass, ...]

    def __post_init__(self) -> None:
        """Check the passes and their names."""
        for one in self.passes:
            if not isinstance(one, Pass):
                told = (
                    "give an object of a class derived from bnas.passes.Pass, such as PIPELINE.after('trace', MyPass())"
                )
                raise PassError(f"{one!r} is no pass: {told}")
            if not isinstance(getattr(one, "name", None), str):
                raise PassError(f"{type(one).__name__} has no name; give it one: name: ClassVar[str] = 'my-pass'")
        names = self.names
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise PassError(f"the pass {twice[0]!r} is in the pipeline twice: {', '.join(names)}")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the passes, in order."""
        return tuple(one.name for one in self.passes)

    def before(self, name: str, *new: Pass) -> Pipeline:
        """Return the pipeline with passes inserted before the one called `name`."""
        at = self._place(name)
        return Pipeline((*self.passes[:at], *new, *self.passes[at:]))

    def after(self, name: str, *new: Pass) -> Pipeline:
        """Return the pipeline with passes inserted after the one called `name`."""
        at = self._place(name) + 1
        return Pipeline((*self.passes[:at], *new, *self.passes[at:]))

    def replace(self, name: str, *new: Pass) -> Pipeline:
        """Return the pipeline with other passes instead of the one called `name`."""
        at = self._place(name)
        return Pipeline((*self.passes[:at], *new, *self.passes[at + 1 :]))

    def without(self, name: str) -> Pipeline:
        """Return the pipeline without the pass called `name`."""
        return self.replace(name)

    def _place(self, name: str) -> int:
        if name not in self.names:
            raise PassError(f"there is no pass {name!r}; there are {', '.join(self.names)}")
        return self.names.index(name)

    def run(self, analysis: Analysis, dump: Callable[[str], None] | None = None) -> Analysis:
        """Run all passes and check the analysis after each; an error gets a note that names the pass.

        Args:
            analysis: where to start, ``Analysis(model, example_inputs, elasticity)``.
            dump: called with the analysis as text, at the beginning and after each pass that changed it.

        Raises:
            PassError: a pass needs a missing part, or breaks a promise.
        """
        done: list[str] = []
        if dump is not None:
            dump(f"# at first\n{describe(analysis)}")
        for one in self.passes:
            try:
                with deeper():
                    result = _checked(one, analysis)
            except Exception as error:
                add_note(error, f"while running the pass {one.name!r}" + (f" after {', '.join(done)}" if done else ""))
                raise
            if dump is not None:
                dump(f"# after {one.name}" + (f"\n{describe(result.analysis)}" if result.modified else ": no change"))
            analysis = result.analysis
            done.append(one.name)
        return analysis


def _checked(one: Pass, before: Analysis) -> PassResult:
    """Run a pass and check its promises; add its refusals, and whether outputs changed, to the analysis."""
    missing = [name for name in one.needs if not before.has(name)]
    if missing:
        raise PassError(
            f"{one.name!r} needs {missing[0]}, which no earlier pass provides, or which a pass between them removed"
        )
    pins = len(before.types.pins) if before.has("types") else 0
    result: Any = one.apply(before)
    if not isinstance(result, PassResult):
        raise PassError(
            f"{one.name!r}: apply returned {type(result).__name__}; return PassResult(analysis, modified, refusals), "
            "with PassResult(analysis, False) where there is nothing to do"
        )
    for problem in _broken(one, before, result):
        raise PassError(f"{one.name!r}: {problem}")
    after = result.analysis
    same = before.has("types") and after.has("types") and after.types is before.types
    pinned = after.types.pins[pins:] if same else []
    told = {**after.refusals, one.name: tuple(dict.fromkeys((*result.refusals, *pinned)))}
    changed = _has_another_graph(before, after) and not one.keeps_outputs
    return replace(result, analysis=replace(after, refusals=told, rewritten=after.rewritten or changed))


def _has_another_graph(before: Analysis, after: Analysis) -> bool:
    return before.has("ir") and after.found.get("ir") is not before.ir


def _broken(one: Pass, before: Analysis, result: PassResult) -> Iterator[str]:
    after = result.analysis
    if after is not before and not result.modified:
        yield "it reports that nothing is modified, but returns another analysis"
    if after.model is not before.model:
        yield "it replaced the model, which belongs to the user"
    yield from (f"it promises {name} but does not provide it" for name in one.gives if not after.has(name))
    yield from problems(after)
    yield from one.broken(before, after)
    if one.keeps_outputs and _has_another_graph(before, after):
        error = difference(before, after)
        if not error <= TOLERANCE:
            yield (
                f"it promises to keep the outputs, but they differ by {error:.1e}; "
                "a pass that changes outputs on purpose must set keeps_outputs = False"
            )


# The passes of bnas, and the default pipeline of every super-network.


@dataclass(frozen=True)
class Trace(Pass):
    """Before: a model. After: its graph, with the value of every node on meta tensors."""

    name: ClassVar[str] = "trace"
    needs: ClassVar[tuple[str, ...]] = ()
    gives: ClassVar[tuple[str, ...]] = ("ir",)

    def apply(self, analysis: Analysis) -> PassResult:
        """Trace the model with its example inputs."""
        if analysis.has("ir"):
            return PassResult(analysis, False)
        ir = trace(analysis.model, analysis.example_inputs, analysis.dynamic, check=analysis.check)
        return PassResult(analysis.having(ir=ir), True, ir.diagnostics)


@dataclass(frozen=True)
class TypeAxes(Pass):
    """Before: a graph. After: the type of every axis of every tensor; groups that the settings name are tied."""

    name: ClassVar[str] = "type-axes"
    gives: ClassVar[tuple[str, ...]] = ("types",)

    def apply(self, analysis: Analysis) -> PassResult:
        """Type the graph by the registered rules."""
        if analysis.has("types"):
            return PassResult(analysis, False)
        types = analyse(analysis.ir)
        tie_groups(types, analysis.elasticity.overwrite_groups or ())
        return PassResult(analysis.having(types=types), True, tuple(types.pins))


@dataclass(frozen=True)
class FindBlocks(Pass):
    """Before: a typed graph. After: the blocks that may be skipped; the types at the ends of regions are tied."""

    name: ClassVar[str] = "find-blocks"
    needs: ClassVar[tuple[str, ...]] = ("types",)
    gives: ClassVar[tuple[str, ...]] = ("blocks",)

    def apply(self, analysis: Analysis) -> PassResult:
        """Match the blocks."""
        if analysis.has("blocks"):
            return PassResult(analysis, False)
        blocks = in_training(analysis.ir, skippable_blocks(analysis.types, analysis.elasticity))
        return PassResult(analysis.having(blocks=blocks), True, (*blocks.refused, *blocks.ties))


@dataclass(frozen=True)
class FindKernels(Pass):
    """Before: a typed graph. After: the convolutions whose kernel can get smaller."""

    name: ClassVar[str] = "find-kernels"
    needs: ClassVar[tuple[str, ...]] = ("types",)
    gives: ClassVar[tuple[str, ...]] = ("kernels",)

    def apply(self, analysis: Analysis) -> PassResult:
        """Match the convolutions; none where the settings leave kernels alone."""
        if analysis.has("kernels"):
            return PassResult(analysis, False)
        settings, kernels = analysis.elasticity, Kernels()
        if "kernel" in settings.dimensions:
            kernels = find_kernels(analysis.types, settings.min_kernel, settings.max_num_kernels)
        return PassResult(analysis.having(kernels=kernels), True, kernels.refused)


@dataclass(frozen=True)
class Choose(Pass):
    """Before: axis types, blocks and kernels. After: the search space that the settings define."""

    name: ClassVar[str] = "choose"
    needs: ClassVar[tuple[str, ...]] = ("types", "blocks", "kernels")
    gives: ClassVar[tuple[str, ...]] = ("choices",)

    def apply(self, analysis: Analysis) -> PassResult:
        """Apply the policy."""
        if analysis.has("choices"):
            return PassResult(analysis, False)
        choices = choose(analysis.types, analysis.blocks, analysis.elasticity, analysis.kernels)
        return PassResult(analysis.having(choices=choices), True, choices.refused)


PIPELINE = Pipeline((Trace(), TypeAxes(), FindBlocks(), FindKernels(), Choose()))
"""The default pipeline, from a model to its search space."""
