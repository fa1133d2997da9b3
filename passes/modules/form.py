"""The module form: a sub-network as a copy of the user's model with smaller layers, instead of a graph.

The copy keeps ``forward``, helper methods and the names of tensors. Numbers in attributes are adapted, and modules of
skipped blocks are replaced. Before it is returned, the copy is compared with the graph of the sub-network: both run in
double precision on noise, with random statistics and biases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from bnas.passes.assembly.rewriting import fit, fit_shape, is_layer, terms_of
from bnas.passes.assembly.skeleton import NORMS, Skeleton
from bnas.passes.assembly.slot import Copies
from bnas.passes.axes.selection import active
from bnas.passes.axes.terms import Sym
from bnas.passes.errors import ModuleFormError
from bnas.passes.frontend.copies import deep_copy
from bnas.passes.frontend.exported.program import ExportedModel
from bnas.passes.frontend.ir import as_call, as_program_call
from bnas.passes.frontend.places import line_of
from bnas.passes.frontend.recording import inner_of
from bnas.passes.frontend.structure import map_leaves, tensors_of
from bnas.passes.ops.rnn import settle
from bnas.passes.oracle.oracle import ONLY_SINGLE, InDouble, in_double, randomise
from bnas.passes.space.subnet import Subnet

from .attention import can_be_narrow, narrow
from .removal import Called, Removal, Removals, where
from .sizes import Candidates, Place, numbers_of
from .trial import Expected, Fault, Trial, difference

DOUBLE, SINGLE = 1e-9, 1e-5
"""Allowed differences from the graph: in double precision, and with tables in single precision."""
FITTED = frozenset(
    {"in_channels", "out_channels", "groups", "kernel_size", "padding", "stride", "dilation", "output_padding"}
    | {"in_features", "out_features", "in1_features", "in2_features", "num_embeddings", "embedding_dim"}
    | {"normalized_shape", "num_features", "num_channels", "num_groups", "input_size", "hidden_size", "num_parameters"}
    | {"_reversed_padding_repeated_twice", "padding_idx"}
)
"""Attributes of layers that follow from their tensors."""


def module_form(skeleton: Skeleton, subnet: Subnet, example_inputs: Any, root: nn.Module | None = None) -> nn.Module:
    """Return `subnet` as a copy of `root` (by default the model), with the model's classes and in evaluation mode.

    Raises:
        SubnetError: The sub-network does not belong to this space.
        ModuleFormError: The model's classes cannot express the sub-network; the message says why and where.
    """
    skeleton.choices.space.check(subnet)
    source = skeleton.ir.root if root is None else root
    if isinstance(source, ExportedModel):
        raise ModuleFormError(
            "an exported program has no classes of its own. Use supernet.extract(subnet), which returns its graph"
        )
    plan = _Planner(skeleton, subnet, source, example_inputs).plan()
    return plan.carry_out(skeleton, source)


@dataclass
class Plan:
    """The changes to a copy of the model."""

    assignment: Mapping[Sym, int]
    removals: list[Removal]
    calls: Mapping[str, Called]
    """How each module is called."""
    numbers: dict[Place, int] = field(default_factory=dict)

    def carry_out(self, skeleton: Skeleton, root: nn.Module) -> nn.Module:
        """Return a copy of `root` with smaller tensors, adapted numbers, and without the modules of skipped blocks."""
        tensors = [*root.parameters(), *root.buffers()]
        made = deep_copy(root, {id(one): one for one in tensors if one.is_leaf})
        cut(made, skeleton, root, self.assignment)
        for removal in self.removals:
            removal.of(made, self.calls.get(removal.path, Called()))
        return self.with_numbers(made).eval()

    def with_numbers(self, made: nn.Module) -> nn.Module:
        """Write the adapted numbers into a copy with smaller tensors."""
        for place, number in self.numbers.items():
            place.set(made, number)
        for module in made.modules():
            if can_be_narrow(module):
                narrow(module)
        return made


def cut(made: nn.Module, skeleton: Skeleton, root: nn.Module, assignment: Mapping[Sym, int]) -> None:
    """Give `made`, a copy of `root`, the kept tensors and the layer settings that follow from them."""
    bind, settings = Copies(), skeleton.settings(assignment)
    for path, module in made.named_modules(remove_duplicate=False):
        if isinstance(
            module, torch.jit.ScriptModule
        ):  # a scripted module: its tensors belong to its code and are rigid
            continue
        vars(module).update(settings.get(path, {}))
        source = root.get_submodule(path)
        names = [name for table in (source._parameters, source._buffers) for name in table]
        slots = {name: skeleton.slot(root, _path(path, name), assignment) for name in names if _has(source, name)}
        bind(module, slots)
        fit(module, slots)
    for module in made.modules():
        weight = getattr(module, "weight", None) if "parametrizations" in module._modules else None
        if isinstance(weight, Tensor):
            fit_shape(module, tuple(weight.shape))
        settle(module)


def _path(owner: str, name: str) -> str:
    return f"{owner}.{name}" if owner else name


def _has(module: nn.Module, name: str) -> bool:
    return module._parameters.get(name) is not None or module._buffers.get(name) is not None


class _Planner:
    """Finds the changes that turn a model into a sub-network, by trials on a copy in double precision."""

    def __init__(self, skeleton: Skeleton, subnet: Subnet, source: nn.Module, example_inputs: Any) -> None:
        self.skeleton, self.subnet = skeleton, subnet
        self.assignment = skeleton.assignment(subnet)
        self.calls: dict[str, Called] = {}
        self.root = in_double(source)
        generator = torch.Generator().manual_seed(0)
        call = as_call(example_inputs)
        with InDouble():
            several = self._noise(call, generator, 4 if has_statistics(self.root) else 1)
            self.args, self.kwargs = self._noise(call, generator, 1)
            randomise(self.root, lambda: self._run_whole(*several), generator)

    def plan(self) -> Plan:
        """Return the changes.

        Raises:
            ModuleFormError: The classes cannot express the sub-network.
        """
        graph = self.skeleton.build(self.subnet, Copies(), self.root).eval()
        expected = Expected(graph)
        with torch.no_grad(), InDouble():
            self.wanted = expected.run(*self._placed(graph))
        removals = Removals(self.skeleton, self.subnet, expected.nodes).find()
        plan = Plan(self.assignment, removals, self.calls)
        made = plan.carry_out(self.skeleton, self.root)
        choices = self._choices(made)
        plan.numbers = {place: options[0] for place, options in choices.items()}
        trial = Trial(plan.with_numbers(made), expected, choices)
        if self._differs(trial):
            self._differs(trial, search=True)
            plan.numbers |= trial.found
            trial = Trial(plan.carry_out(self.skeleton, self.root), expected, {})
            if why := self._differs(trial):
                raise self._refusal(trial.fault, why)
        return plan

    def _choices(self, made: nn.Module) -> dict[Place, list[int]]:
        """Return the possible values of each number that may change, most likely first."""
        candidates, found = Candidates(self.skeleton.types, self.assignment), dict[Place, list[int]]()
        for path, module in made.named_modules():
            for place, number in numbers_of(module, path):
                options = candidates.of(place, number) if _is_free(module, place) else [number]
                if options != [number]:
                    found[place] = options
        return found

    def _differs(self, trial: Trial, search: bool = False) -> str:
        """Return how the modules differ from the graph; empty if they compute the same."""
        try:
            with InDouble():
                found = trial.run(self.args, self.kwargs, search)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        most, place = difference(found, self.wanted)
        return "" if most <= self._allowed else f"output {place or 'tensor'} differs by {most:.1e} from the graph's"

    @cached_property
    def _allowed(self) -> float:
        ir = self.skeleton.ir
        tables = any(one.is_floating_point() and one.numel() > 1 for one in ir.constants.values())
        return SINGLE if tables or any(node.target in ONLY_SINGLE for node in ir.graph.nodes) else DOUBLE

    def _refusal(self, fault: Fault | None, why: str) -> ModuleFormError:
        """Return the error with the first module that differs from the graph, and the line."""
        path = fault.path if fault else ""
        while path and type(self.root.get_submodule(path)).__module__.startswith("torch.nn."):
            path = path.rpartition(".")[0]  # a layer of PyTorch computes with what it is given
        module = self.root.get_submodule(path)
        line = line_of(fault.error) if fault and fault.error else ""
        line = f" at {line}" if line else next(self._lines(path), "")
        return ModuleFormError(
            "the classes of the model cannot express this sub-network: no change of numbers in attributes makes "
            f"{path or 'the model'!r} ({type(module).__name__}) compute what the graph does{line} ({why}). "
            "Use supernet.extract(subnet), which returns the graph"
        )

    def _lines(self, path: str) -> Iterator[str]:
        """Return lines of a module's code whose constants change in the sub-network, then those of skipped blocks."""
        for rewrite in self.skeleton.types.rewrites:
            changes = any(active(term, self.assignment) != term.size for term in terms_of(rewrite))
            if changes and rewrite.node.meta.get("scope") == path and (line := where(rewrite.node)):
                yield line
        for name in sorted(self.subnet.skipped):
            yield f" in or beside the skipped block {name!r}{where(self.skeleton.choices.blocks[name].out)}"

    # Inputs -----------------------------------------------------------------------------------------------------

    def _noise(self, call: Any, generator: torch.Generator, times: int) -> Any:
        """Return noise inputs with `times` the batch size, or the example inputs if the model refuses these."""
        size = next((len(one) for one in tensors_of(call) if one.ndim), 0)

        def noise(_: Any, value: Any) -> Any:
            if not isinstance(value, Tensor) or not value.ndim:
                return value
            value = torch.cat([value] * times) if len(value) == size else value
            if not value.is_floating_point():
                return value
            return torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.device)

        made = map_leaves(call, noise)
        try:
            with torch.no_grad():
                inner_of(self.root)(*made[0], **made[1])
        except Exception:  # a fixed batch, or numbers of entries among floating-point inputs
            return map_leaves(call, lambda _, value: value.double() if _is_float(value) else value)
        return made

    def _run_whole(self, args: Any, kwargs: Any) -> None:
        """Run the whole model, and note how its modules are called."""

        def note(path: str, call: tuple[Any, Any, Any]) -> None:
            self.calls[path] = Called.of(*call)

        hooks = [
            module.register_forward_hook(lambda _, *call, path=path: note(path, call), with_kwargs=True)
            for path, module in self.root.named_modules()
            if not isinstance(module, torch.jit.ScriptModule)
        ]
        inner_of(self.root)(*args, **kwargs)
        for hook in hooks:
            hook.remove()

    def _placed(self, graph: GraphModule) -> list[Any]:
        """The inputs in the order of the graph's placeholders."""
        tensors, _ = as_program_call(self.args)
        _, named = as_program_call(self.kwargs)
        names = [str(node.target) for node in graph.graph.find_nodes(op="placeholder")]
        return [*tensors, *(named[name] for name in names[len(tensors) :])]


def has_statistics(model: nn.Module) -> bool:
    """Whether the model has a layer with batch statistics."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _is_free(module: nn.Module, place: Place) -> bool:
    """Whether a number is one of a user's class, and no setting of a layer that follows from its tensors."""
    if isinstance(module, nn.MultiheadAttention):
        return place.keys == ("num_heads",)
    if isinstance(module, nn.GroupNorm | NORMS) and not module.state_dict():
        return place.keys in (("num_channels",), ("num_features",))
    own = not type(module).__module__.startswith(("torch.nn.", "torch.fx."))  # a graph's code reads no attributes
    return own and not (is_layer(module) and place.keys[0] in FITTED)
