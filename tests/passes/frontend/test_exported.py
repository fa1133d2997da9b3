"""Programs of `torch.export` are models: the same is elastic in them; sizes they were not exported for are refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export, load, save

import bnas
from bnas import SuperNetwork
from bnas.data.factories import SourceError
from bnas.data.sources import load_model
from bnas.passes import CaptureError, InputError
from bnas.passes.ops.aten import in_python
from bnas.testing.assertions import (
    assert_extracted_is_oracle,
    assert_gradients_match,
    assert_maximal_is_original,
    assert_onnx_is_extracted,
    assert_program_is_extracted,
)

ANY: Any = Dim.DYNAMIC
IMAGES = ({0: ANY, 2: ANY, 3: ANY},)


class Residual(nn.Module):
    """A stem, a residual block with a large kernel, a dropout and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.body, self.again = nn.Conv2d(16, 16, 5, padding=2), nn.BatchNorm2d(16)
        self.relu, self.drop, self.head = nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.stem(x)))
        x = self.relu(self.again(self.body(x)) + x)
        return self.head(self.drop(F.adaptive_avg_pool2d(x, 1).flatten(1)))


class Classifier(nn.Module):
    """Words, positions, one block of attention with a mask, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(20, 16), nn.Parameter(torch.randn(1, 12, 16))
        self.first, self.second = nn.LayerNorm(16), nn.LayerNorm(16)
        self.query, self.key, self.value, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.up, self.down, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        b, t = ids.shape
        x = self.words(ids) + self.places[:, :t]
        h = self.first(x)
        q, k, v = (layer(h).view(b, t, 4, 4).transpose(1, 2) for layer in (self.query, self.key, self.value))
        a = F.scaled_dot_product_attention(q, k, v, mask[:, None, None, :])
        x = x + self.out(a.transpose(1, 2).reshape(b, t, 16))
        x = x + self.down(F.gelu(self.up(self.second(x))))
        return self.head(x.mean(1))


def images() -> tuple[Tensor, ...]:
    return (torch.randn(2, 3, 12, 12),)


def text() -> tuple[Tensor, ...]:
    return torch.randint(0, 20, (2, 6)), torch.ones(2, 6, dtype=torch.bool)


CASES = pytest.mark.parametrize(
    ("kind", "inputs", "shapes"),
    [
        pytest.param(Residual, images, IMAGES, id="images"),
        pytest.param(Classifier, text, ({0: ANY, 1: ANY}, {0: ANY, 1: ANY}), id="text"),
    ],
)


def exported(model: nn.Module, inputs: tuple[Any, ...], shapes: Any = None, **settings: Any) -> ExportedProgram:
    return export(model.eval(), inputs, dynamic_shapes=shapes, **settings)


def reloaded(program: ExportedProgram, folder: Path) -> ExportedProgram:
    """What is loaded of a saved program."""
    save(program, folder / "program.pt2")
    return load(folder / "program.pt2")


def found(supernet: SuperNetwork) -> tuple[Any, ...]:
    """What is elastic, by name, and which axes are dynamic."""
    space = supernet.space
    return dict(space.widths), tuple(space.blocks), dict(space.kernels), supernet.dynamic


# What is elastic ----------------------------------------------------------------------------------------------------


@CASES
def test_what_is_elastic_is_that_of_the_model(
    kind: type[nn.Module], inputs: Callable[[], Any], shapes: Any, tmp_path: Path
) -> None:
    model, example = kind().eval(), inputs()
    expected = found(SuperNetwork.from_model(model, example))
    assert expected[0]
    assert expected[1]
    program = exported(model, example, shapes)
    assert found(SuperNetwork.from_model(program)) == expected
    assert found(SuperNetwork.from_model(reloaded(program, tmp_path))) == expected
    assert found(SuperNetwork.from_model(exported(model, example, shapes, strict=True))) == expected


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(torchvision.models.resnet18, id="resnet18"),
        pytest.param(torchvision.models.efficientnet_b0, id="efficientnet_b0"),
    ],
)
def test_what_is_elastic_in_torchvision_s_models(model: Callable[[], nn.Module]) -> None:
    net, x = model().eval(), torch.randn(2, 3, 64, 64)
    assert found(SuperNetwork.from_model(exported(net, (x,), IMAGES), check=False)) == found(
        SuperNetwork.from_model(net, x, check=False)
    )


@CASES
def test_sub_networks_are_right(kind: type[nn.Module], inputs: Callable[[], Any], shapes: Any) -> None:
    model, example = kind().eval(), inputs()
    program = exported(model, example, shapes)
    supernet = SuperNetwork.from_model(program)
    torch.testing.assert_close(supernet(*example), model(*example), rtol=0, atol=0)
    assert_maximal_is_original(supernet, example)
    smallest = supernet.space.minimal()
    assert_program_is_extracted(supernet, smallest, example)
    assert_extracted_is_oracle(supernet, smallest, example)
    assert_gradients_match(supernet, smallest, example)
    assert_onnx_is_extracted(supernet, smallest, example)
    assert bnas.verify(program, supernet, smallest, example) < 1e-12
    assert supernet.costs(smallest) == SuperNetwork.from_model(model, example).costs(smallest)


def test_parameters_are_those_of_the_program() -> None:
    model = Residual()
    supernet = SuperNetwork.from_model(exported(model, images(), IMAGES))
    shared = dict(supernet.model.named_parameters())
    assert all(shared[name] is parameter for name, parameter in model.named_parameters())
    assert dict(supernet.model.named_buffers())["norm.running_mean"] is model.norm.running_mean


def test_copies_and_pickles_compute_the_same() -> None:
    supernet, x = SuperNetwork.from_model(exported(Residual(), images(), IMAGES)), images()
    for twin in (copy.deepcopy(supernet), pickle.loads(pickle.dumps(supernet))):
        torch.testing.assert_close(twin(*x), supernet(*x), rtol=0, atol=0)
        assert twin.model.stem.weight is not supernet.model.stem.weight


def test_extracted_modules_are_made_of_layers() -> None:
    supernet = SuperNetwork.from_model(exported(Residual(), images(), IMAGES))
    layers = dict(supernet.extract(supernet.space.minimal()).named_modules())
    assert {type(layers[name]) for name in ("stem", "norm", "head")} == {nn.Conv2d, nn.BatchNorm2d, nn.Linear}


def test_batch_norms_follow_the_mode_and_dropout_does_not() -> None:
    supernet = SuperNetwork.from_model(exported(Residual(), images(), IMAGES))
    program, x = supernet.program(supernet.space.maximal()), images()[0] + 1
    before = supernet.model.norm.running_mean.clone()
    supernet.train()
    program.train()
    torch.testing.assert_close(program(x), program(x))
    assert not torch.equal(before, supernet.model.norm.running_mean)
    assert any("exported program" in str(one) for one in supernet.diagnostics)


def test_a_super_network_is_saved_and_loaded_on_a_program(tmp_path: Path) -> None:
    program = exported(Residual(), images(), IMAGES)
    supernet = SuperNetwork.from_model(program)
    supernet.save(tmp_path)
    again = SuperNetwork.load(tmp_path, exported(Residual(), images(), IMAGES))
    torch.testing.assert_close(again(*supernet.example()), supernet(*supernet.example()), rtol=0, atol=0)


# Axes ---------------------------------------------------------------------------------------------------------------


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3))


def test_axes_of_a_fixed_size_are_static() -> None:
    supernet = SuperNetwork.from_model(exported(small(), images(), ({2: ANY},)))
    assert supernet.dynamic == {"input": {2: "height"}}
    program = supernet.program(supernet.space.maximal())
    assert program(torch.randn(2, 3, 20, 12)).shape == (2, 4, 16, 8)
    for module in (program, supernet):
        with pytest.raises(InputError, match=r"axis 0 has size 3, expected 2\. .*exported"):
            module(torch.randn(3, 3, 12, 12))


def test_an_axis_of_a_fixed_size_cannot_be_named() -> None:
    with pytest.raises(CaptureError, match="axis 2 of input 'input' cannot be dynamic: it was exported with a fixed"):
        SuperNetwork.from_model(exported(small(), images()), dynamic={"input": {2: "height"}})


def test_limits_of_sizes_are_checked() -> None:
    shapes = ({0: Dim("batch", max=8), 2: Dim("height", min=8, max=64)},)
    supernet = SuperNetwork.from_model(exported(small(), images(), shapes))
    program = supernet.program(supernet.space.maximal())
    for module in (program, supernet):
        assert module(torch.randn(1, 3, 64, 12)).shape == (1, 4, 60, 8)
        with pytest.raises(InputError, match="axis 0 has size 9, expected at most 8"):
            module(torch.randn(9, 3, 12, 12))
        with pytest.raises(InputError, match="axis 2 has size 6, expected at least 8, at most 64"):
            module(torch.randn(2, 3, 6, 12))


class Mixed(nn.Module):
    """Multiplies by a square table that comes with the words."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor, *, table: Tensor, factor: float = 1.0) -> dict[str, Any]:
        with torch.no_grad():
            level = x.mean()
        return {"mixed": table @ self.down(self.up(x)) * factor + torch.tensor([0.5]), "level": [level]}


def test_axes_of_one_size_change_together_and_keyword_inputs_and_nested_outputs_stay() -> None:
    given = {"table": torch.randn(2, 5, 5), "factor": 2.0}
    shapes = {"x": {0: ANY, 1: ANY}, "table": {0: ANY, 1: ANY, 2: ANY}, "factor": None}
    model, x = Mixed().eval(), torch.randn(2, 5, 8)
    program = export(model, (x,), given, dynamic_shapes=shapes)
    supernet = SuperNetwork.from_model(program)
    axes = supernet.dynamic
    assert axes["x"][1] == axes["table"][2]
    other = {"x": torch.randn(3, 7, 8), "table": torch.randn(3, 7, 7), "factor": 2.0}
    torch.testing.assert_close(supernet(**other), model(**other))
    smallest = supernet.extract(supernet.space.minimal())
    assert smallest(other["x"], table=other["table"])["mixed"].shape == (3, 7, 8)
    with pytest.raises(InputError, match=r"'factor' is 3\.0; it was exported as 2\.0"):
        supernet(**other | {"factor": 3.0})


# What is refused ----------------------------------------------------------------------------------------------------


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda x: self.layer(x), lambda x: x - 1, (x,))


class Mapped(Branching):
    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(lambda row: row * row.sum())(self.layer(x))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        pytest.param(Branching, "calls cond on a graph of its own.*give the model itself", id="branch"),
        pytest.param(Mapped, "a part of torch.func", id="vmap"),
    ],
)
def test_programs_that_run_graphs_are_refused(kind: type[nn.Module], reason: str) -> None:
    with pytest.raises(CaptureError, match=reason):
        SuperNetwork.from_model(exported(kind(), (torch.randn(4, 8),)))
    assert torch.rand(2).shape == (2,)  # no level of vmap is left behind


def test_the_module_of_a_program_is_refused() -> None:
    with pytest.raises(CaptureError, match="Give the exported program itself"):
        SuperNetwork.from_model(exported(small(), images()).module(), images())


def test_a_model_needs_example_inputs() -> None:
    with pytest.raises(CaptureError, match="no example inputs"):
        SuperNetwork.from_model(small())


def test_a_program_is_left_as_it_was() -> None:
    program = exported(Residual(), images(), IMAGES)
    code, state = program.graph_module.code, {name: one.clone() for name, one in program.state_dict.items()}
    SuperNetwork.from_model(program)
    assert program.graph_module.code == code
    assert all(torch.equal(program.state_dict[name], one) for name, one in state.items())
    program.module()(*images())


# Operators ----------------------------------------------------------------------------------------------------------

aten = torch.ops.aten
X, Y = torch.rand(2, 4, 5, 6) - 0.5, torch.rand(3, 4, 3, 3)


@pytest.mark.parametrize(
    ("operator", "args", "kwargs", "function"),
    [
        pytest.param(aten.conv2d.padding, (X, Y, None, [1, 1], "same"), {}, F.conv2d, id="conv2d"),
        pytest.param(aten.softmax.int, (X, -1), {}, F.softmax, id="softmax"),
        pytest.param(aten.silu_.default, (X.clone(),), {}, F.silu, id="in-place"),
        pytest.param(aten.hardtanh.default, (X, -0.1, 0.3), {}, F.hardtanh, id="hardtanh"),
        pytest.param(aten.gelu.default, (X,), {"approximate": "tanh"}, F.gelu, id="gelu"),
        pytest.param(aten.dropout.default, (X, 0.5, False), {}, F.dropout, id="dropout"),
        pytest.param(aten.add.Tensor, (X, X), {"alpha": 2}, Tensor.add, id="add"),
        pytest.param(aten.rsub.Scalar, (X, 2), {}, Tensor.__rsub__, id="rsub"),
        pytest.param(aten.slice.Tensor, (X, -2, 1, 5, 2), {}, Tensor.__getitem__, id="slice"),
        pytest.param(aten.to.dtype, (X, torch.float64), {}, Tensor.to, id="to"),
        pytest.param(aten.upsample_bilinear2d.vec, (X, None, True, [2.0, 2.0]), {}, F.interpolate, id="resize"),
        pytest.param(aten.elu.default, (X, 0.5), {}, F.elu, id="elu"),
        pytest.param(aten.elu.default, (X, 1.0, 2.0), {}, torch._C._nn.elu, id="scaled-elu"),
        pytest.param(aten.sum.dim_IntList, (X, [1]), {"dtype": torch.float64}, Tensor.sum, id="sum"),
        pytest.param(
            aten.batch_norm.default,
            (X, None, None, *X[:, :, 0, 0].abs(), False, 0.1, 1e-3, True),
            {},
            F.batch_norm,
            id="norm",
        ),
        pytest.param(aten.alias.default, (X,), {}, aten.alias.default, id="without-a-function"),
    ],
)
def test_operators_compute_what_their_python_functions_do(
    operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any], function: Any
) -> None:
    plain = operator(args[0].clone(), *args[1:], **kwargs)
    target, given, named = in_python(operator, args, kwargs)
    assert target is function or target == function
    torch.testing.assert_close(target(*given, **named), plain, rtol=0, atol=0)


def test_models_that_call_operators_themselves_are_elastic() -> None:
    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.norm, self.down = nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = aten.relu.default(self.up(x))
            return self.down(aten.layer_norm.default(x, [16], self.norm.weight, self.norm.bias))

    supernet = SuperNetwork.from_model(Calls().eval(), torch.randn(2, 8))
    assert len(supernet.space.widths) == 1
    assert bnas.verify(supernet.model, supernet, supernet.space.minimal(), torch.randn(2, 8)) < 1e-12


# Files --------------------------------------------------------------------------------------------------------------


def test_a_file_is_a_model(tmp_path: Path) -> None:
    program = exported(small(), images(), IMAGES)
    save(program, tmp_path / "small.pt2")
    model = load_model("small.pt2", None, tmp_path)
    torch.testing.assert_close(model(*images()[:1]).shape, torch.Size([2, 4, 8, 8]))
    with pytest.raises(SourceError, match="there is no file"):
        load_model("other.pt2", None, tmp_path)
