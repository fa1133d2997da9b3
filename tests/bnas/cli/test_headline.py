"""What `bnas inspect` says first: how small a model gets, what stays whole and what to do about it, its blocks."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from bnas.cli.headline import OTHERWISE, headline, remedy
from bnas.cli.inspection import inspect_model
from bnas.data.inputs import Input


class Residual(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((self.body(x).relu() + x).mean((2, 3)))


class Ordered(Residual):
    """An operator needs all channels in their order."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cumprod(self.body(self.stem(x)), 1).mean((2, 3)))


class Undecided(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Opaque(Residual):
    def __init__(self) -> None:
        super().__init__()
        self.last = Undecided()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.body(self.stem(x))).mean((2, 3)))


def told(model: nn.Module) -> list[str]:
    return headline(inspect_model("net", model.eval(), [Input((2, 3, 6, 6))]).to_json()).splitlines()


def test_the_three_things_come_first_and_the_details_after() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(*inspect_model("net", Residual().eval(), [Input((2, 3, 6, 6))]).tables(), sep="\n")
    lines = console.export_text().splitlines()
    assert lines[0] == "net"
    places = [next(n for n, line in enumerate(lines) if line.startswith(start)) for start in ("1. ", "2. ", "3. ")]
    assert places == sorted(places)
    assert places[-1] < next(n for n, line in enumerate(lines) if "elastic width" in line)


def test_numbers_by_hand() -> None:
    """Half of the channels, without the block: the stem and the head are left."""
    size, blocks = told(Residual())[0], told(Residual())[-1]
    whole, least = 36 * (27 * 32 + 288 * 32) + 128, 36 * 27 * 16 + 64
    assert f"1. How small: down to {least / whole:.0%} of the MACs" in size
    assert "6 sub-networks in all" in size
    assert blocks == "3. Blocks: 1 block can be skipped: add."


def test_a_model_with_nothing_to_mend_says_so() -> None:
    lines = told(Residual(256))
    assert any(line.startswith("2. What cannot shrink: ") and "nothing to do" in line for line in lines)
    assert any("What cannot shrink: less than 0.1% of the parameters" in line for line in told(Residual(4096)))


@pytest.mark.parametrize(
    ("model", "reason", "do"),
    [
        (Ordered(), "cumprod runs along it", "put a linear layer or a convolution before and after it"),
        (Opaque(), "the opaque module Undecided has no rule", "register a rule for it: docs/passes.md"),
    ],
)
def test_what_stays_whole_comes_with_what_to_do(model: nn.Module, reason: str, do: str) -> None:
    lines = [line for line in told(model) if reason in line]
    assert len(lines) == 1
    assert do in lines[0]
    assert not any("nothing to do" in line for line in told(model))


def test_parts_that_settings_keep_are_named_with_the_share_that_is_left() -> None:
    """Rigid is what no setting could change, so parts that the user keeps are no part of that share."""
    data = inspect_model("net", Residual(256).eval(), [Input((2, 3, 6, 6))]).to_json()
    assert "nothing to do" in headline(data)
    pinned = {"place": "stem", "reason": "pinned by a setting"}
    told = headline({**data, "diagnostics": [pinned], "parameters": {"minimal": 250, "maximal": 1000}})
    assert "nothing to do" not in told
    assert "keep stem as they are: 25.0% of the parameters are in every sub-network." in told


def test_a_model_without_blocks_or_choices_says_why() -> None:
    lines = told(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()))
    assert "   Nothing can shrink: the reasons are below." in lines
    assert "none can be skipped" in lines[-1]
    small = told(nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1)))
    assert any("1 width too small to shrink: 0. To do: lower min_width and divisor." in line for line in small)


def test_reasons_that_nobody_thought_of_have_a_page() -> None:
    assert remedy("something new") == OTHERWISE
