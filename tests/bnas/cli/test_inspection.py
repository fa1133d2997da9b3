"""What is told of a model: the rigid share by hand, members of widths, and tables that fit a terminal."""

from __future__ import annotations

import io
import json

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from bnas.cli.inspection import inspect_model, shorten
from bnas.data.inputs import Input
from bnas.passes import analyse, trace
from bnas.passes.rigidity import ONE_LEFT, rigid_share

KEYS = [
    "model",
    "inputs",
    "dynamic",
    "sizes",
    "blocks",
    "width",
    "kernel",
    "space_size",
    "macs",
    "parameters",
    "rigid_share",
    "diagnostics",
]


class Opaque(nn.Module):
    """Looks at values, so it is an opaque leaf; its weight is also read outside."""

    def __init__(self, shared: nn.Parameter) -> None:
        super().__init__()
        self.shared, self.own = shared, nn.Parameter(torch.rand(5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.own.sum() if x.sum() > 0 else x


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 1)
        self.head, self.unused = nn.Linear(16, 4), nn.Linear(100, 100)
        self.last = Opaque(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.last(self.head((self.body(x).relu() + x).mean((2, 3))))


def test_the_rigid_share_by_hand() -> None:
    types = analyse(trace(Net().eval(), torch.zeros(2, 3, 6, 6)))
    total = 16 * 3 * 9 + 16 + 16 * 16 + 16 + 4 * 16 + 4 + 5
    expected = {
        "a kernel keeps its spatial size when channels are removed": 3 * 9,
        "the opaque module Opaque has no rule": 4 + 4,  # of head
        "it is inside an opaque module": 5,
        ONE_LEFT: 1 + 1 + 1,
    }
    assert rigid_share(types) == pytest.approx({reason: n / total for reason, n in expected.items()})
    types.pin_axes(types.tensors["stem.weight"], "a veto")
    pinned = rigid_share(types)
    assert pinned["a veto"] * total == pytest.approx(16 * 27 + 16 + 16 * 16 + 16 + 4 * 16)
    assert sum(pinned.values()) == pytest.approx(1)


def test_a_model_without_parameters_has_no_rigid_share() -> None:
    assert rigid_share(analyse(trace(nn.ReLU(), torch.zeros(2, 3)))) == {}


def test_data_has_these_keys_and_is_plain() -> None:
    found = inspect_model("net", Net().eval(), [Input((2, 3, 6, 6))]).to_json()
    assert list(found) == [*KEYS, "seconds"]
    assert json.loads(json.dumps(found)) == found
    assert found["width"]["stem"] == {"choices": [8, 16], "members": found["width"]["stem"]["members"]}
    assert {"stem.weight", "stem.bias", "body.weight", "head.weight"} <= set(found["width"]["stem"]["members"])
    assert found["blocks"]
    assert found["space_size"] == 4
    assert found["macs"]["minimal"] < found["macs"]["maximal"]
    assert found["parameters"]["maximal"] < sum(p.numel() for p in Net().parameters()) - 100 * 100
    assert found["rigid_share"]["total"] == pytest.approx(sum(found["rigid_share"]["reasons"].values()))
    told = [one["reason"] for one in found["diagnostics"] if one["place"] == "last"]
    assert any("opaque, its inputs and outputs are rigid" in reason for reason in told)


@pytest.mark.parametrize("columns", [80, 120])
def test_tables_fit_the_terminal(columns: int) -> None:
    found = inspect_model("net", Net().eval(), [Input((2, 3, 6, 6))])
    console = Console(width=columns, record=True, file=io.StringIO())
    console.print(*found.tables(), sep="\n")
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= columns
    for told in ("stem", "8 16", "skippable block", "sub-networks: 4", "macs: ", "parameters: ", "seconds: "):
        assert told in text
    assert "the opaque module" in text
    assert "elastic kernels" not in text  # an empty table is left out
    large = inspect_model("net", nn.Sequential(nn.Conv2d(3, 2, (7, 5), padding=(3, 2))), [Input((2, 3, 8, 8))])
    assert large.to_json()["kernel"] == {"0": {"choices": [3, 5, 7], "sizes": [[3, 3], [5, 5], [7, 5]]}}
    console.print(*large.tables())
    assert "3x3 5x5 7x5" in console.export_text()


def test_layers_of_one_parent_stand_together() -> None:
    tensors = ["stem.weight", "a.0.conv.weight", "a.0.norm.weight", "a.0.norm.bias", "a.1.conv.weight", "scale"]
    assert shorten(tensors) == "{stem,scale} a.0.{conv,norm} a.1.conv"


class WithAuxiliaryHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.auxiliary = nn.Linear(4, 16), nn.Linear(16, 2), nn.Linear(16, 100)

    def forward(self, x: torch.Tensor) -> object:
        y = self.body(x).relu()
        return (self.head(y), self.auxiliary(y)) if self.training else self.head(y)


def test_what_only_training_mode_reads_is_not_counted() -> None:
    types = analyse(trace(WithAuxiliaryHead().eval(), torch.randn(3, 4)))
    assert "auxiliary.weight" in types.tensors
    assert not any("training" in reason for reason in rigid_share(types))
