"""Recurrent layers as functions of their weights: what `nn.LSTM`, `nn.GRU`, `nn.RNN` and their cells are spelled as.

The weights of one layer and direction are ``weight_ih`` (gates x hidden, inputs), ``weight_hh`` (gates x hidden,
hidden) and two biases (gates x hidden). An `nn.LSTM` has four for each layer and direction, by names with a suffix, so
its functional form depends on its settings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

if TYPE_CHECKING:
    from bnas.passes.assembly.slot import Slot

NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
"""The tensors of one layer and direction, without the suffix."""


def suffixes(num_layers: int, bidirectional: bool) -> Iterator[tuple[int, str]]:
    """Yield each layer and direction: the number of the layer, and the ending of its tensors' names."""
    for layer in range(num_layers):
        yield layer, f"_l{layer}"
        if bidirectional:
            yield layer, f"_l{layer}_reverse"


def tensor_names(layer: nn.Module) -> tuple[str, ...] | None:
    """The names of the tensors of an `nn.LSTM`, `nn.GRU` or `nn.RNN`; None for an LSTM with projections."""
    if layer.proj_size:
        return None
    ends = [end for _, end in suffixes(int(layer.num_layers), bool(layer.bidirectional))]  # type: ignore[arg-type]
    return tuple(f"{name}{end}" for end in ends for name in NAMES if hasattr(layer, f"{name}{end}"))


def lstm(input: Tensor, hx: tuple[Tensor, Tensor] | None = None, **given: Any) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """`nn.LSTM` in evaluation mode, as a function of its tensors and settings, which have its own names."""
    if not input.is_meta:
        return _run(nn.LSTM, input, hx, given)  # type: ignore[no-any-return]
    output, state = _empty(input, **given)
    return output, (state, torch.empty_like(state))


def gru(input: Tensor, hx: Tensor | None = None, **given: Any) -> tuple[Tensor, Tensor]:
    """`nn.GRU` as a function, like `lstm`."""
    return _run(nn.GRU, input, hx, given) if not input.is_meta else _empty(input, **given)


def rnn(input: Tensor, hx: Tensor | None = None, **given: Any) -> tuple[Tensor, Tensor]:
    """`nn.RNN` as a function, like `lstm`."""
    return _run(nn.RNN, input, hx, given) if not input.is_meta else _empty(input, **given)


def lstm_cell(input: Tensor, hx: tuple[Tensor, Tensor] | None = None, **given: Any) -> tuple[Tensor, Tensor]:
    """`nn.LSTMCell` as a function of its tensors."""
    if not input.is_meta:
        return _run(nn.LSTMCell, input, hx, given)  # type: ignore[no-any-return]
    state = _empty_cell(input, **given)
    return state, torch.empty_like(state)


def gru_cell(input: Tensor, hx: Tensor | None = None, **given: Any) -> Tensor:
    """`nn.GRUCell`, as `lstm_cell`."""
    return _run(nn.GRUCell, input, hx, given) if not input.is_meta else _empty_cell(input, **given)


def rnn_cell(input: Tensor, hx: Tensor | None = None, **given: Any) -> Tensor:
    """`nn.RNNCell`, as `lstm_cell`."""
    return _run(nn.RNNCell, input, hx, given) if not input.is_meta else _empty_cell(input, **given)


def recurrent(input: Tensor, *state: Any, layer: nn.Module) -> Any:
    """`nn.LSTM`, `nn.GRU`, `nn.RNN` and their cells as a function, as ONNX has them: `layer` is called."""
    return layer(input, *state)


MODULES = (nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell)
"""Recurrent layers, and the cells that are one step of them."""


def _run(kind: Any, input: Tensor, hx: Any, given: Mapping[str, Any]) -> Any:
    """The layer itself on real tensors."""
    weights = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    settings = {name: value for name, value in given.items() if name not in weights and name[:4] != "bias"}
    end = next((name[9:] for name in weights if name.startswith("weight_ih")), "")
    sizes = weights[f"weight_ih{end}"].shape[1], weights[f"weight_hh{end}"].shape[1]
    layer = kind(*sizes, bias=f"bias_ih{end}" in weights, device="meta", **settings).eval()
    return functional_call(layer, weights, (input, hx))


def _empty(
    input: Tensor, num_layers: int, bidirectional: bool, batch_first: bool, **given: Any
) -> tuple[Tensor, Tensor]:
    """The output and the last states of a layer, on meta tensors, which would take long to compute step by step."""
    hidden, directions = given["weight_hh_l0"].shape[1], 1 + bidirectional
    _check(input, (2, 3), given["weight_ih_l0"])
    batch = () if input.ndim == 2 else (input.shape[0 if batch_first else 1],)
    state = input.new_empty(num_layers * directions, *batch, hidden)
    return input.new_empty(*input.shape[:-1], directions * hidden), state


def _empty_cell(input: Tensor, weight_ih: Tensor, weight_hh: Tensor, **_: Any) -> Tensor:
    _check(input, (1, 2), weight_ih)
    return input.new_empty(*input.shape[:-1], weight_hh.shape[1])


def _check(input: Tensor, dims: tuple[int, int], weight: Tensor) -> None:
    if input.ndim not in dims or input.shape[-1] != weight.shape[1]:
        raise ValueError(f"a recurrent layer of {weight.shape[1]} inputs on a tensor of shape {tuple(input.shape)}")


def fit(shell: nn.Module, slots: Mapping[str, Slot]) -> bool:
    """Set the sizes of a recurrent layer that follow from the shapes of its tensors; say whether it is one."""
    if not isinstance(shell, nn.RNNBase | nn.RNNCellBase):
        return False
    end = "_l0" if isinstance(shell, nn.RNNBase) else ""
    if f"weight_hh{end}" in slots and not getattr(shell, "proj_size", 0):  # those with projections stay whole
        inputs, hidden = slots[f"weight_ih{end}"].shape[1], slots[f"weight_hh{end}"].shape[1]
        vars(shell).update(input_size=inputs, hidden_size=hidden)
    return True


def settle(layer: nn.Module) -> nn.Module:
    """Update the list of weights that a layer passes to PyTorch's kernels to its present tensors.

    Until then a shell has the list of the layer that it was made of.
    """
    if isinstance(layer, nn.RNNBase):
        layer._init_flat_weights()
    return layer


def share(layer: nn.Module) -> nn.Module:
    """Keep a layer from moving its weights into memory of their own (for cuDNN): they are views of shared ones."""
    if isinstance(layer, nn.RNNBase):
        vars(layer)["flatten_parameters"] = _stay
    return layer


def _stay() -> None:
    """In place of `nn.RNNBase.flatten_parameters`."""
