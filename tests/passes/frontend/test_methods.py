"""Methods that read values are one step of the graph, and what surrounds them stays elastic."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from capture_cases import Between, captured, everything, image, same_as_before, same_outputs, trains_alike
from torch import Tensor, nn

from bnas.passes import CaptureError, InputError, trace
from bnas.passes.frontend.opaque import OpaqueMethod
from bnas.runtime import SuperNetwork


class Layers(nn.Module):
    """Two layers, and what `found` selects of their values."""

    def __init__(self, found: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.first, self.last, self.found = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 4, 1), found
        self.limit, self.table = 0.0, torch.arange(4.0).view(4, 1, 1)

    def forward(self, x: Tensor) -> Any:
        return self.found(self, self.last(self.first(x).relu()))

    def above(self, y: Tensor) -> list[Tensor]:
        """The values above a limit, for each image."""
        y = y + self.table
        return [one[one > self.limit] for one in y]  # the line to name

    def count(self, y: Tensor) -> tuple[Tensor, int]:
        number = int((y > self.limit).sum())
        return y[y > self.limit], number

    def scaled(self, y: Tensor) -> Tensor:
        return y[y > 0] * self.first.bias.sum()

    def again(self, y: Tensor) -> Tensor:
        return self.last(y.repeat(1, 8, 1, 1))[0][y[0] > 0]

    def kept(self, y: Tensor) -> Tensor:
        return y[y > self.mean]

    def filled(self, y: Tensor, found: list[Tensor]) -> None:
        found.append(y[y > 0])

    def by_mode(self, y: Tensor) -> Tensor:
        return y[y > 0] * (3 if self.training else 2)

    def written(self, y: Tensor) -> Tensor:
        return y.mul_(2)[y > 0]


def selects(net: Layers, y: Tensor) -> Any:
    return net.above(y)


def opaque_of(supernet: SuperNetwork) -> list[OpaqueMethod]:
    return [one for one in supernet.ir.modules.values() if isinstance(one, OpaqueMethod)]


def test_a_method_of_the_model_is_one_step() -> None:
    net = Layers(selects).eval()
    supernet = captured(net, image(), [image() * 3, image(2, 7, 5)])
    assert all(len(values) for values in net(image()))
    assert supernet.space.minimal().widths["first"] < 32
    (told,) = (one for one in supernet.diagnostics if one.place == "above")
    assert "an opaque method, its inputs and outputs are rigid: it cannot be recorded" in told.reason
    assert "return [one[one > self.limit] for one in y]  # the line to name" in told.reason
    assert [one.place for one in opaque_of(supernet)] == ["above"]


def test_another_pass_gives_the_step_its_value_anew() -> None:
    ir = SuperNetwork.from_model(Layers(parts_by_number).eval(), image()).ir
    graph, copies = ir.copy_graph()
    again = ir.with_graph(graph)
    (layer,) = (node for node in ir.graph.nodes if "above" in node.name)
    assert again.opaque
    assert [one.ndim for one in copies[layer].meta["value"]] == [1, 1]


def test_the_step_holds_nothing_of_the_models_weights() -> None:
    net = Layers(selects).eval()
    supernet = SuperNetwork.from_model(net, image())
    (layer,) = opaque_of(supernet)
    held = layer._holder[0]
    assert not [*layer.parameters(), *held.parameters(), *held.buffers()]
    assert not hasattr(held.first, "weight")
    small = supernet.extract(supernet.space.minimal())
    for again in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        torch.testing.assert_close(again(image()), small(image()), rtol=0, atol=0)
    torch.save(small.state_dict(), io.BytesIO())
    assert small.state_dict().keys() == net.state_dict().keys()


def test_a_method_of_a_submodule_is_one_step() -> None:
    net = Between(lambda net, x: x * torch.cat(net.part(x)).mean(), part=Layers(selects))
    net.part.first = nn.Conv2d(8, 32, 1)
    supernet = captured(net.eval(), image())
    assert "part.first" in supernet.space.minimal().widths
    assert [one.place for one in opaque_of(supernet)] == ["part.above"]


REFUSED = {
    "reads-a-parameter": (lambda net, y: net.scaled(y), "scaled cannot be kept unchanged"),
    "calls-a-layer": (lambda net, y: net.again(y), "again cannot be kept unchanged"),
    "fills-a-list": (lambda net, y: filled(net, y), "changes a list or dict argument"),
    "reads-what-forward-sets": (lambda net, y: kept(net, y), "forward sets the attribute 'mean' before"),
    "writes-into-its-input": (lambda net, y: net.written(y), "it writes into its inputs"),
    "no-method": (lambda net, y: y[y > 0], "into a submodule or method"),
}


def filled(net: Layers, y: Tensor) -> list[Tensor]:
    found: list[Tensor] = []
    net.filled(y, found)
    return found


def kept(net: Layers, y: Tensor) -> Tensor:
    net.mean = y.mean()
    return net.kept(y)


@pytest.mark.parametrize("name", REFUSED)
def test_a_method_that_cannot_be_one_step_is_refused_with_the_reason(name: str) -> None:
    found, reason = REFUSED[name]
    net = Layers(found).eval()
    before = everything(net)
    with pytest.raises(CaptureError, match=reason):
        trace(net, image())
    same_as_before(net, before)


@pytest.mark.parametrize("name", ["reads-a-parameter", "calls-a-layer"])
def test_the_module_is_opaque_where_its_method_cannot_be(name: str) -> None:
    net = Between(lambda net, x: x * net.part(x).mean(), part=Layers(REFUSED[name][0]))
    net.part.first = nn.Conv2d(8, 32, 1)
    supernet = captured(net.eval(), image())
    assert not opaque_of(supernet)
    assert [one.place for one in supernet.ir.diagnostics if "opaque" in one.reason] == ["part"]


def mean_of_many(net: Layers, y: Tensor) -> Tensor:
    found, number = net.count(y)
    return found.sum() / number + y.new_zeros(number + 1).sum()


def parts_by_number(net: Layers, y: Tensor) -> Any:
    found = net.above(y)
    whole = torch.cat(found) * 2
    return whole.split([len(one) for one in found])


@pytest.mark.parametrize("found", [mean_of_many, parts_by_number])
def test_numbers_that_depend_on_values_are_no_constants(found: Any) -> None:
    net = Layers(found).eval()
    captured(net, image(), [image() * 3, image() - 2, image(2, 7, 5)])


def test_a_model_of_one_size_takes_other_values() -> None:
    class OneSize(Layers):
        def forward(self, x: Tensor) -> Any:
            assert x.shape == (2, 3, 4, 6)
            return super().forward(x)

    supernet = captured(OneSize(parts_by_number).eval(), image(), [image() * 3, image() - 2])
    assert not supernet.dynamic


def test_a_method_follows_the_mode() -> None:
    supernet = trains_alike(Layers(lambda net, y: net.by_mode(y)), image())
    assert len(opaque_of(supernet)) == 1


def test_a_method_in_another_mode_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = OpaqueMethod.forward
    monkeypatch.setattr(OpaqueMethod, "forward", lambda self, *args: plain(self.eval(), *args))
    with pytest.raises((AssertionError, CaptureError)):
        trains_alike(Layers(lambda net, y: net.by_mode(y)), image())


# lists of images


class Images:
    """Images of several sizes as one tensor, with their sizes."""

    def __init__(self, tensors: Tensor, sizes: list[tuple[int, int]]) -> None:
        self.tensors, self.sizes = tensors, sizes


class Padded(nn.Module):
    """Images on zeros whose height and width are multiples of 8."""

    def forward(self, images: list[Tensor]) -> Images:
        height, width = (-(-max(one.shape[axis] for one in images) // 8) * 8 for axis in (1, 2))
        padded = [F.pad(one, (0, width - one.shape[2], 0, height - one.shape[1])) for one in images]
        return Images(torch.stack(padded), [(one.shape[1], one.shape[2]) for one in images])


class OfImages(nn.Module):
    """A small detector: the places of every image where something is found."""

    def __init__(self, returned: Callable[[Images, list[Any]], Any] = lambda images, found: found) -> None:
        super().__init__()
        self.padded, self.returned = Padded(), returned
        self.first, self.last = nn.Conv2d(3, 32, 3, 2, 1), nn.Conv2d(32, 1, 1)

    def forward(self, images: list[Tensor]) -> Any:
        one = self.padded(images)
        y = self.last(self.first(one.tensors).relu())
        stride = one.tensors.shape[3] // y.shape[3]
        places = torch.arange(y.shape[3], device=y.device) * stride
        return self.returned(one, self.places(one, y + places))

    def places(self, images: Images, y: Tensor) -> list[dict[str, Tensor]]:
        found = []
        for one, (height, width) in zip(y, images.sizes, strict=True):
            inside = one[0, : -(-height // 2), : -(-width // 2)]
            rows, columns = torch.where(inside > inside.mean())
            found.append({"places": torch.stack([rows, columns], 1), "values": inside[rows, columns]})
        return found


def images(*sizes: tuple[int, int]) -> tuple[list[Tensor]]:
    return ([image(1, *size)[0] for size in sizes],)


def test_images_of_a_list_have_sizes_of_their_own() -> None:
    net = OfImages().eval()
    others = [images((30, 9), (10, 11)), images((5, 6), (17, 40)), images((24, 24), (24, 24))]
    supernet = captured(net, images((16, 16), (16, 16)), others)
    assert supernet.space.minimal().widths["first"] < 32
    assert supernet.dynamic["images_0"].keys() == supernet.dynamic["images_1"].keys() == {1, 2}
    assert {"padded", "places"} <= {one.place for one in supernet.diagnostics if "opaque" in one.reason}
    assert all(len(found["values"]) for found in net(*others[0]))


def test_a_list_of_another_length_is_refused() -> None:
    supernet = SuperNetwork.from_model(OfImages().eval(), images((16, 16), (16, 16)))
    for module in (supernet.program(supernet.space.minimal()), supernet.extract(supernet.space.minimal())):
        for number in (1, 3):
            with pytest.raises(InputError, match=f"'images' has {number} entries, expected 2 as in the example"):
                module(*images(*[(16, 16)] * number))


def test_an_object_is_returned_in_its_own_type() -> None:
    net = OfImages(lambda one, found: {"found": found, "images": one}).eval()
    supernet = captured(net, images((16, 16), (16, 24)))
    found = supernet.extract(supernet.space.maximal())(*images((16, 20), (9, 9)))
    assert type(found["images"]) is Images
    assert found["images"].sizes == [(16, 20), (9, 9)]


def test_a_size_in_another_place_is_rejected() -> None:
    net = OfImages(lambda one, found: one.sizes).eval()
    supernet = SuperNetwork.from_model(net, images((16, 16), (16, 16)))
    net.returned = lambda one, found: one.sizes[::-1]
    with pytest.raises(AssertionError, match="not equal"):
        same_outputs((supernet.program(supernet.space.maximal()),), net, images((16, 20), (9, 9)))


def test_layers_that_a_graph_has_of_its_own_are_not_opaque() -> None:
    net = Between(lambda net, y: torch.nn.functional.dropout(y, 0.5 if net.training else 0.25, training=True) * 2)
    ir = trace(net.eval(), image())
    assert ir.modules
    assert not ir.opaque
