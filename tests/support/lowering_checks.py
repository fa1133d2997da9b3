"""What the lowering tests share: trace a net, run its ONNX graph, compare with PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, symbolic_trace

from bnas.passes.onnx.lower import lower, named_outputs

Net = nn.Module | Callable[..., Any]
IMAGE = (6, 9, 8)


def traced(net: Net) -> GraphModule:
    """The graph of `net` in eval mode, with batch statistics and affine parameters that are not the initial ones."""
    if isinstance(net, nn.Module):
        net.eval()
        for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
            if tensor.is_floating_point():
                tensor.data = torch.rand_like(tensor) + 0.5 if "var" in name else torch.randn_like(tensor) * 0.5
    return net if isinstance(net, GraphModule) else symbolic_trace(net).eval()


def run(model: onnx.ModelProto, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The outputs of `model` on ONNX Runtime, without its optimisations: they are not what is tested."""
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    return [
        torch.from_numpy(one) for one in session.run(None, dict(zip(names, map(Tensor.numpy, inputs), strict=True)))
    ]


def inputs_of(shapes: Sequence[tuple[int, ...]], batch: int) -> list[Tensor]:
    return [torch.randn(batch, *shape) for shape in shapes]


def assert_lowered(net: Net, *shapes: tuple[int, ...]) -> onnx.ModelProto:
    """`net` gives the same on ONNX Runtime as in PyTorch, on batches of 1 and 3, and its weights stay as they were."""
    module = traced(net)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    model = lower(module, inputs_of(shapes, 2))
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
    for batch in (1, 3):
        inputs = inputs_of(shapes, batch)
        found = run(model, inputs)
        with torch.no_grad():
            expected = [tensor for _, tensor in named_outputs(module(*(one.clone() for one in inputs)))]
        torch.testing.assert_close(found, expected)
    return model


def assert_dynamic(net: Net, axes: Sequence[dict[int, str]], *examples: Tensor, sizes: Sequence[dict[str, int]]) -> Any:
    """`net` gives the same on ONNX Runtime as in PyTorch at all `sizes` of its dynamic axes, named for each input."""
    module = traced(net)
    names = [str(node.target) for node in module.graph.nodes if node.op == "placeholder"]
    module.meta["dynamic"] = dict(zip(names, axes, strict=True))
    model = lower(module, examples)
    for size in sizes:
        inputs = [resized(one, own, size) for one, own in zip(examples, axes, strict=True)]
        with torch.no_grad():
            expected = [tensor for _, tensor in named_outputs(module(*(one.clone() for one in inputs)))]
        torch.testing.assert_close(run(model, inputs), expected)
    return model


def resized(example: Tensor, axes: dict[int, str], sizes: dict[str, int]) -> Tensor:
    """Random numbers, or for integers those of the example again, with other sizes of the dynamic axes."""
    shape = [sizes[axes[axis]] if axis in axes else size for axis, size in enumerate(example.shape)]
    if example.is_floating_point():
        return torch.randn(shape, dtype=example.dtype)
    places = torch.randint(example.numel(), shape)
    return example.flatten()[places]


def op_types(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]
