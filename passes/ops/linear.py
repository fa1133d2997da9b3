"""Linear layers and embeddings: a weight makes the last axis."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnas.passes.axes.terms import K
from bnas.passes.axes.types import Axes, AxisTypes
from bnas.passes.onnx.site import Site

from . import shapes
from .calls import Call
from .record import Layer, Operator, Sample, Spelled, Trait
from .zeros import by_weight


def linear_axes(types: AxisTypes, call: Call) -> Axes:
    """In = weight axis 1, out = weight axis 0 = bias; any number of leading axes."""
    inputs, weight = types.type(call.argument(0, "input")), types.type(call.argument(1, "weight"))
    bias = call.argument(2, "bias")
    types.unify(inputs[-1], weight[1])
    types.contract((call.argument(0, "input"), -1), (call.argument(1, "weight"), 1))
    if bias is not None:
        types.unify(types.type(bias)[0], weight[0])
    out = [*inputs[:-1], weight[0]]
    types.produces(call.argument(1, "weight"), 0)
    types.count_macs(call, [*out, weight[1]])
    return out


def embedding_axes(types: AxisTypes, call: Call) -> Axes:
    """The rows are read by numbers; the width is elastic."""
    index, weight = types.type(call.argument(0, "input")), types.type(call.argument(1, "weight"))
    types.pin_axes([weight[0], *index], "its rows are read by index")
    types.produces(call.argument(1, "weight"), 1)
    return [*index, weight[1]]


def embedding_bag_axes(types: AxisTypes, call: Call) -> Axes:
    """Like `embedding`; rows are summed in bags."""
    weight = types.type(call.argument(1, "weight"))
    for tensor in call.tensors():
        types.pin_axes(types.type(tensor)[: 1 if types.type(tensor) is weight else None], "its rows are read in bags")
    types.produces(call.argument(1, "weight"), 1)
    return [K(types.output_shape(call)[0]), weight[1]]


def linear_onnx(site: Site) -> str:
    """Gemm on two dimensions, MatMul and Add on any other number."""
    weight, bias = site.value(1, "weight"), site.optional(2, "bias")
    if site.x.tensor.ndim == 2:
        return site.emit("Gemm", site.x, weight, bias, transB=1)
    product = site.emit("MatMul", site.x, site.transpose(weight, [1, 0]))
    return product if bias is None else site.emit("Add", product, bias)


def embedding_onnx(site: Site) -> str:
    """Rows of a table."""
    if site.arg(3, "max_norm") is not None:
        raise site.refuse("scales the rows that it reads (max_norm)")
    return site.emit("Gather", site.value(1, "weight"), site.x, axis=0)


def embedding_bag_onnx(site: Site) -> str:
    """Rows of a table, in bags of one length, which is not 0: PyTorch makes zeros of an empty bag."""
    refused = {2: "offsets", 3: "max_norm", 8: "per_sample_weights", 10: "padding_idx"}
    given = [name for position, name in refused.items() if site.arg(position, name) is not None]
    if given or site.x.tensor.ndim != 2 or site.x.sizes[1] == 0:
        raise site.refuse(f"has {', '.join(given) or 'other indices than a row for each bag'}")
    rows = site.emit("Gather", site.value(1, "weight"), site.x, axis=0)
    reduction = {"sum": "ReduceSum", "mean": "ReduceMean", "max": "ReduceMax"}[site.arg(6, "mode", "mean")]
    return site.emit(reduction, rows, site.ints([1]), keepdims=0)


def _embedding(weight: Any, indices: Any, padding_idx: int, scale_grad_by_freq: bool, sparse: bool) -> Spelled:
    settings: dict[str, Any] = {} if padding_idx < 0 else {"padding_idx": padding_idx}
    settings |= {"scale_grad_by_freq": True} if scale_grad_by_freq else {}
    return F.embedding, (indices, weight), settings | ({"sparse": True} if sparse else {})


def linear_sizes(layer: nn.Linear, shape: tuple[int, ...]) -> dict[str, int]:
    """The sizes that `nn.Linear` has as attributes."""
    return {"out_features": shape[0], "in_features": shape[1]}


def embedding_sizes(layer: nn.Module, shape: tuple[int, ...]) -> dict[str, int]:
    """The sizes that embeddings have as attributes."""
    return {"num_embeddings": shape[0], "embedding_dim": shape[1]}


def bilinear_sizes(layer: nn.Bilinear, shape: tuple[int, ...]) -> dict[str, int]:
    """The sizes that `nn.Bilinear` has as attributes."""
    return {"out_features": shape[0], "in1_features": shape[1], "in2_features": shape[2]}


def _bags(x: Tensor) -> Tensor:
    """The numbers of rows in a bag for each sample."""
    return (x.mean((1, 2)) > 0).long()


def _in_bags(onnx: str = "", **settings: Any) -> Sample:
    """A factor for each channel, from bags that follow the input: what does not is never lowered."""
    return Sample(
        lambda x, w: x * F.embedding_bag(_bags(x), w, **settings)[:, :, None, None], weights=((3, 8),), onnx=onnx
    )


RECORDS = (
    Operator(F.bilinear, layers={nn.Bilinear: Layer(leaf=False, sizes=bilinear_sizes)}),
    Operator(
        F.linear,
        layers={nn.Linear: Layer(tensors=("weight", "bias"), sizes=linear_sizes)},
        traits={Trait.FUSES_NORM, Trait.FUSES_ACTIVATION, Trait.OWNS_MEMORY},
        axes=linear_axes,
        zeros=by_weight(-1, 1, 0),
        shape=shapes.projected,
        onnx=linear_onnx,
        samples=(
            Sample(lambda x, layer: layer(x.mT.transpose(1, 3)).transpose(1, 3), layer=lambda: nn.Linear(8, 5)),
            Sample(lambda x, w: F.linear(x.mean((2, 3)), w), weights=((5, 8),)),
        ),
    ),
    Operator(
        F.embedding,
        aten={"embedding": _embedding},
        spellings=(torch.embedding,),
        layers={nn.Embedding: Layer(tensors=("weight",), settings=("padding_idx",), sizes=embedding_sizes)},
        traits={Trait.LOOKUP, Trait.OWNS_MEMORY},
        axes=embedding_axes,
        zeros=by_weight(-1, 1),
        onnx=embedding_onnx,
        samples=(
            Sample(lambda x, layer: x + layer(_bags(x)).mT[:, :, None], layer=lambda: nn.Embedding(6, 8)),
            Sample(lambda x, w: x + F.embedding(torch.arange(6), w).t()[:, None], weights=((6, 8),)),
        ),
    ),
    Operator(
        F.embedding_bag,
        layers={nn.EmbeddingBag: Layer(leaf=False, sizes=embedding_sizes)},
        axes=embedding_bag_axes,
        zeros=by_weight(-1, 1),
        onnx=embedding_bag_onnx,
        samples=(
            Sample(lambda x, bags: x * bags(_bags(x))[:, :, None, None], layer=lambda: nn.EmbeddingBag(3, 8)),
            _in_bags(mode="sum"),
            _in_bags(mode="max"),
            _in_bags(padding_idx=1, onnx="has padding_idx"),
            Sample(
                lambda x, w: x * F.embedding_bag(_bags(x)[0], w, torch.tensor([0, 2])).prod(0)[:, None, None],
                weights=((3, 8),),
                onnx="has offsets",
            ),
            Sample(
                lambda x, w: x + F.embedding_bag(_bags(x), w, None, None, 2.0, False, "sum", False, x[:, 0, 0])[0, 0],
                weights=((3, 8),),
                rigid="read by index",
                onnx="has per_sample_weights",
            ),
        ),
    ),
)
