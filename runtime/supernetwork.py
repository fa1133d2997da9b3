"""The super-network: a model with shared weights and a search space."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from bnas.passes import IR, PIPELINE, Analysis, Diagnostic, Elasticity, PassError, Pipeline, SearchSpace, Subnet
from bnas.passes.assembly.importance import read_scores
from bnas.passes.assembly.reordering import reorder
from bnas.passes.assembly.skeleton import Skeleton
from bnas.passes.assembly.slot import Copies
from bnas.passes.cost.architecture import Architecture
from bnas.passes.cost.costs import Costs
from bnas.passes.cost.layers import architecture
from bnas.passes.errors import ModuleFormError
from bnas.passes.frontend.copies import copying, deeper, own_functions
from bnas.passes.frontend.exported.program import as_model, as_module
from bnas.passes.frontend.ir import as_program_call
from bnas.passes.frontend.structure import tensors_of
from bnas.passes.modules.form import module_form
from bnas.passes.pipeline.variants import at_sizes, trained_choices
from bnas.passes.wording import amount, counted, indented

from .program import KnownViews, Program, Views
from .storage.archive import fingerprint
from .storage.checkpoint import matrix_tensors, read_supernet, shared_tensors, write_supernet

KNOWN_SIZES = 64
"""Number of different input sizes for which cost functions are cached."""


class SuperNetwork(nn.Module):
    """A model together with its sub-networks, which all share the parameters of the model.

    Create one with `from_model`. Calling it runs the maximal sub-network. Its parameters are those of the model, and
    the matrices of elastic kernels: give them to the optimizer.
    """

    def __init__(self, analysis: Analysis) -> None:
        super().__init__()
        self.model = analysis.model
        self.analysis = analysis
        self.skeleton = Skeleton.of(analysis.types, analysis.choices)
        self.kernel_matrices = self.skeleton.matrices
        self._in_training = self._training_skeleton(analysis)
        self.training = self.model.training
        self._views = KnownViews()
        self._costs_at: dict[Any, Costs] = {}

    @classmethod
    def from_model(
        cls,
        model: nn.Module | ExportedProgram,
        example_inputs: Any = None,
        elasticity: Elasticity | Mapping[str, Any] | None = None,
        *,
        dynamic: Mapping[str, Mapping[int, str]] | None = None,
        check: bool = True,
        pipeline: Pipeline = PIPELINE,
    ) -> SuperNetwork:
        """Analyse `model` and return its super-network; the model is shared, not changed.

        Args:
            model: any module, in training or evaluation mode; or an `ExportedProgram` of `torch.export`, whose
                parameters are then shared.
            example_inputs: a tensor, a tuple of positional inputs, or a dict of keyword inputs, with tensors anywhere
                inside; axis 0 is the batch. An exported program brings its own.
            elasticity: what may change; by default depth, kernels down to 3, and widths of 100, 75 and 50 %.
            dynamic: axes whose size may change, besides the batch, named by input and axis, such as
                ``{"input_ids": {1: "length"}, "attention_mask": {1: "length"}}``, as ``dynamic_axes`` of
                ``torch.onnx.export``. By default all axes that can change: image sizes of convolutional networks, and
                the length of text where the model takes any.
            check: compare the captured graph with the model first, in both modes and at other sizes.
            pipeline: the compiler passes; by default those of bnas.

        Raises:
            CaptureError: the model's own forward cannot be captured, the graph differs from the model, or an axis in
                `dynamic` cannot change.
            ElasticityError: a setting is out of its bounds.
            PassError: a pass needs a part that no other pass provides, or breaks a promise.
        """
        if not isinstance(elasticity, Elasticity):
            elasticity = Elasticity(**(elasticity or {}))
        model, example_inputs = as_model(model, example_inputs)
        analysis = pipeline.run(Analysis(model, example_inputs, elasticity, dynamic, check))
        missing = [part for part in ("ir", "types", "choices") if not analysis.has(part)]
        if missing:
            raise PassError(
                f"no pass of the pipeline provides {missing[0]}; its passes are {', '.join(pipeline.names)}"
            )
        return cls(analysis)

    def __repr__(self) -> str:
        """Return the model's name, the search space, and the costs of its largest and smallest sub-network."""
        head = f"SuperNetwork of {type(self.model).__name__} with {counted(self.space.size, 'sub-network')}"
        return indented(head, self._described())

    def _described(self) -> Iterator[str]:
        yield from self.space.described()
        for name, subnet in (("maximal", self.space.maximal()), ("minimal", self.space.minimal())):
            costs = self.costs(subnet)
            yield f"{name}: {amount(costs['parameters'])} parameters, {amount(costs['macs'])} MACs"
        axes = dict.fromkeys(axis for names in self.dynamic.values() for axis in names.values())
        yield f"sizes that may change: {', '.join(axes) or 'none'}"
        if self.diagnostics:
            yield f"left unchanged: {len(self.diagnostics)} places; `diagnostics` lists them with reasons"

    def __deepcopy__(self, memo: dict[int, Any]) -> SuperNetwork:
        """Return an independent super-network with copies of all tensors.

        Graphs are copied first, node by node, because following the links of a deep graph exceeds Python's recursion
        limit.
        """
        for ir in (self.ir, self.ir.trained):
            if ir is not None:
                graph, copies = ir.copy_graph()
                copies[ir.graph.output_node()] = graph.output_node()
                memo[id(ir.graph)] = graph
                memo.update({id(node): twin for node, twin in copies.items()})
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        with copying(self.model):
            made.__dict__.update(copy.deepcopy(self.__dict__, memo))
            own_functions(self.model, made.model, memo)
        return made

    def _training_skeleton(self, analysis: Analysis) -> Skeleton | None:
        """Return the skeleton for training mode, if the model calls other operators in training mode."""
        if analysis.types.trained is None:
            return None
        choices = trained_choices(analysis.ir, analysis.choices)
        return Skeleton(analysis.types.trained, choices, self.skeleton.matrices)

    @property
    def elasticity(self) -> Elasticity:
        """The settings of the search space."""
        return self.analysis.elasticity

    @property
    def example_inputs(self) -> Any:
        """The inputs that the model was traced with."""
        return self.analysis.example_inputs

    @property
    def ir(self) -> IR:
        """The traced model."""
        return self.skeleton.ir

    @property
    def dynamic(self) -> dict[str, dict[int, str]]:
        """The axes whose size may change, by input and axis: ``{"x": {0: "batch", 2: "height", 3: "width"}}``."""
        return self.ir.dynamic

    @property
    def space(self) -> SearchSpace:
        """The search space: all sub-networks."""
        return self.skeleton.choices.space

    @property
    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """All parts of the model that cannot change (rigid) or were left unchanged, with the reasons."""
        return self.analysis.diagnostics

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the maximal sub-network: the model, or the graph if a pass changed what the model computes."""
        if not self.analysis.rewritten:
            return self.model(*args, **kwargs)
        tensors, _ = as_program_call(args)
        _, named = as_program_call(kwargs)
        return self.program(self.space.maximal())(*tensors, **named)

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names of the inputs of programs."""
        return tuple(self.ir.names.values())

    def program(self, subnet: Subnet) -> Program:
        """Return a module for `subnet` that uses views of the shared parameters, gradients and BatchNorm buffers.

        It has the mode of the super-network. Its backward pass accumulates into the shared ``.grad``.

        Raises:
            SubnetError: the sub-network is not of this space.
        """
        program = self._program(self.skeleton, subnet)
        if self._in_training is not None:
            program.__dict__["in_training"] = partial(self._program, self._in_training, subnet)
        return program

    def _program(self, skeleton: Skeleton, subnet: Subnet) -> Program:
        bind = Views(self._views)
        program = skeleton.build(subnet, bind, kind=Program, share_code=True)
        assert isinstance(program, Program)
        program.__dict__.update(_bindings=bind.bindings, ir=skeleton.ir)
        return program

    @overload
    def extract(
        self, subnet: Subnet, root: nn.Module | None = None, *, form: Literal["graph"] = "graph"
    ) -> GraphModule: ...

    @overload
    def extract(self, subnet: Subnet, root: nn.Module | None = None, *, form: Literal["module"]) -> nn.Module: ...

    def extract(
        self, subnet: Subnet, root: nn.Module | None = None, *, form: Literal["graph", "module"] = "graph"
    ) -> nn.Module:
        """Return a standalone module for `subnet` with its own contiguous tensors, in evaluation mode.

        In the graph form, ``meta["dynamic"]`` names the input axes whose size may change, ``meta["steps"]`` the step
        between allowed sizes, for axes that do not accept every size.

        Args:
            subnet: The choice.
            root: A module with the architecture of the model, to copy the tensors from instead of the super-network.
            form: "graph" returns a `GraphModule`, which works for every sub-network. "module" returns a copy of the
                model with smaller layers: it has the model's own classes, with their ``forward`` and methods. bnas
                compares it with the graph first.

        Raises:
            SubnetError: the sub-network is not of this space.
            ModuleFormError: the classes of the model cannot express this sub-network; names the module and the line.
            ValueError: there is no such form.
        """
        if form == "module":
            if self.analysis.rewritten:
                raise ModuleFormError(
                    "a pass changed what the model computes, so its classes do not fit; use supernet.extract(subnet)"
                )
            with deeper():
                return module_form(self.skeleton, subnet, self.example_inputs, root)
        if form != "graph":
            raise ValueError(f"form {form!r} is not one of 'graph', 'module'")
        module = self.skeleton.build(subnet, Copies(), root).eval()
        module.meta["dynamic"] = self.dynamic
        module.meta["steps"] = self.ir.sizes.steps
        return module

    @cached_property
    def cost_model(self) -> Costs:
        """The cost expressions of the space."""
        return Costs(self.skeleton.types, self.skeleton.choices)

    @cached_property
    def architecture(self) -> Architecture:
        """The layers with weights and their sizes in each sub-network, for drawing."""
        return architecture(self.skeleton.types, self.skeleton.choices)

    def costs(self, subnet: Subnet, sizes: Mapping[str, int] | None = None) -> dict[str, int]:
        """Return the costs of `subnet` for one sample: MACs, parameters and others, exact for the extracted module.

        Args:
            subnet: the sub-network.
            sizes: sizes of dynamic axes by name, such as ``{"length": 128}``; by default those of the example inputs.

        Raises:
            SubnetError: the sub-network is not of this space.
            InputError: there is no such axis, or the model does not accept that size.
        """
        self.space.check(subnet)
        if not sizes:
            return self.cost_model(subnet)
        key = tuple(sorted(sizes.items()))
        if key not in self._costs_at:
            if len(self._costs_at) >= KNOWN_SIZES:
                self._costs_at.clear()
            self._costs_at[key] = Costs(*at_sizes(self.skeleton.types, self.skeleton.choices, sizes))
        return self._costs_at[key](subnet)

    def fingerprint(self) -> str:
        """Return a short text that identifies the search space and the values of all tensors."""
        tensors = shared_tensors(self.model) | matrix_tensors(self.kernel_matrices)
        return fingerprint(tensors, self.space)

    def reorder(
        self,
        measure: str | None = None,
        scores: Mapping[str, torch.Tensor] | None = None,
        alike: Iterable[Mapping[str, torch.Tensor]] = (),
        *,
        data: Iterable[Any] | None = None,
        criterion: Callable[[Any, Any], torch.Tensor] | None = None,
    ) -> None:
        """Sort the entries of every elastic width by importance, the most important first, in place.

        The maximal sub-network computes the same up to rounding. A width keeps its order if its entries differ in a
        tensor that the state dict does not have (a constant, or a buffer that is not persistent), or if one of its
        tensors shares memory with another one. An optimizer that
        exists already has its state in the old order: create a new one, or pass its tensors as `alike`.

        Args:
            measure: "L1", "L2", "geometric_median", "taylor" or "external"; by default that of the settings.
            scores: for "external" by parameter name; for "taylor" by width name, as `bnas.runtime.taylor` returns
                them.
            alike: tensors by parameter name, to reorder in the same way as the parameters.
            data: for "taylor" without `scores`: batches of the training data.
            criterion: the loss of outputs against targets; by default cross-entropy.

        Raises:
            ElasticityError: there is no such measure, or scores are missing or of another shape.
            TrainingError: as `bnas.runtime.taylor`.
        """
        settings = self.elasticity
        name = settings.filter_importance if measure is None else measure
        if scores is None and name == "taylor" and data is not None:
            from .importance import taylor

            scores = taylor(self, data, criterion)
        if scores is None and measure is None and settings.external_importance_path is not None:
            scores = read_scores(Path(settings.external_importance_path))
        reorder(self.skeleton, name, scores, alike)

    def example(self) -> tuple[torch.Tensor, ...]:
        """Return the example inputs as a flat tuple of tensors."""
        return tuple(tensors_of(as_program_call(self.example_inputs)))

    def save(self, directory: str | Path) -> None:
        """Write the shared tensors (safetensors) and the search space (JSON) to `directory`, atomically."""
        tensors = shared_tensors(self.model) | matrix_tensors(self.kernel_matrices)
        write_supernet(
            Path(directory), tensors, self.elasticity, self.space, self.example_inputs, self.analysis.dynamic
        )

    @classmethod
    def load(
        cls, directory: str | Path, model: nn.Module | ExportedProgram, *, pipeline: Pipeline = PIPELINE
    ) -> SuperNetwork:
        """Return the super-network that `save` wrote, with its tensors loaded into `model`, of the same architecture.

        Give the `pipeline` that the super-network was created with.

        Raises:
            CheckpointError: a file is missing or damaged, or has another format version or another model; the message
                names missing and unexpected tensors. `model` is changed only if everything fits.
        """
        model = as_module(model)
        elasticity, example_inputs, dynamic, restore = read_supernet(Path(directory), model)
        supernet = cls.from_model(model, example_inputs, elasticity, dynamic=dynamic, pipeline=pipeline)
        restore(supernet.space, supernet.kernel_matrices)
        return supernet
