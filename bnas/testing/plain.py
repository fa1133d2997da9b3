"""Parts written as plain Python around tensors: writes, kept tables, arithmetic of sizes, and what the mode decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .stage import Stage


@dataclass(frozen=True)
class Plain(Stage):
    """A piece of plain code on images, one of `PIECES`, that keeps their shape."""

    written: str

    def build(self, channels: int) -> nn.Module:
        """The piece for so many channels."""
        return _PlainModule(self.written)


@dataclass(frozen=True)
class Recurrent(Stage):
    """A recurrent layer along the width, on the mean over the height, added to the image."""

    kind: str = "gru"
    """ "gru", "lstm" or "rnn"."""
    hidden: int = 4
    both: bool = False
    """Whether it runs in both directions."""

    def build(self, channels: int) -> nn.Module:
        """The layers for so many channels."""
        return _RecurrentModule(self, channels)


class _PlainModule(nn.Module):
    tables: dict[Any, Tensor]
    kept: list[Any]

    def __init__(self, written: str) -> None:
        super().__init__()
        self.written, self.tables, self.kept = written, {}, []

    def forward(self, x: Tensor) -> Tensor:
        return PIECES[self.written](self, x)


class _RecurrentModule(nn.Module):
    def __init__(self, plan: Recurrent, channels: int) -> None:
        super().__init__()
        kinds: Mapping[str, Any] = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}
        self.layer = kinds[plan.kind](channels, plan.hidden, batch_first=True, bidirectional=plan.both)
        self.last = nn.Linear(plan.hidden * (2 if plan.both else 1), channels)

    def forward(self, x: Tensor) -> Tensor:
        rows: Tensor = self.last(self.layer(x.mean(2).mT)[0])
        return x + rows.mT.unsqueeze(2)


def _view_write(module: _PlainModule, x: Tensor) -> Tensor:
    y = x * 1
    part = y.flatten(2)
    part *= 0.5
    part += 1
    return y + x


def _item(module: _PlainModule, x: Tensor) -> Tensor:
    y = x + 0
    y[:, :, 0] = 0.25
    y[..., -1:] = x[..., -1:] * 2
    return y


def _into_zeros(module: _PlainModule, x: Tensor) -> Tensor:
    mask = x.new_zeros(x.shape[2], x.shape[3])
    mask[:1] = 1
    mask[:, -1] = -1
    return x + mask


def _table(module: _PlainModule, x: Tensor) -> Tensor:
    size = tuple(x.shape[2:])
    if size not in module.tables:
        module.tables[size] = (torch.arange(size[0])[:, None] * torch.arange(size[1])) % 8 / 8
    table: Tensor = module.tables[size]
    out: Tensor = x + table.to(x.dtype)
    return out


def _kept(module: _PlainModule, x: Tensor) -> Tensor:
    module.kept = [x]
    module.last_input = x.sigmoid()
    out: Tensor = x * module.last_input + module.kept[0]
    return out


def _sizes(module: _PlainModule, x: Tensor) -> Tensor:
    height, width = x.shape[2:]
    return x * (height * width) / (height * width + 1) + x.sum((2, 3), keepdim=True) / (height * width)


def _primes(module: _PlainModule, x: Tensor) -> Tensor:
    return (x * 2018).clamp(-1009, 3027) / 1013 - 1009 / 2018


def _mode(module: _PlainModule, x: Tensor) -> Tensor:
    return F.dropout(x * (0.75 if module.training else 0.5), 0.2, module.training)


PIECES: Mapping[str, Callable[[_PlainModule, Tensor], Tensor]] = {
    "view-write": _view_write,
    "item": _item,
    "into-zeros": _into_zeros,
    "table": _table,
    "kept": _kept,
    "sizes": _sizes,
    "primes": _primes,
    "mode": _mode,
}
"""What `Plain` is, by name."""
