"""Checks of super-networks. They raise `AssertionError` and leave the super-network as they found it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from bnas.passes import Subnet
from bnas.passes.assembly.slot import Slot
from bnas.passes.frontend.attention import DECOMPOSITIONS
from bnas.passes.frontend.fidelity import NoDropout
from bnas.passes.frontend.ir import as_call, as_program_call
from bnas.passes.frontend.state import set_modes
from bnas.passes.onnx.lower import lower, named_outputs
from bnas.runtime.program import Program
from bnas.runtime.supernetwork import SuperNetwork
from bnas.runtime.verification import verify

CANCELLED = 1e-4
"""A gradient that is this much smaller than the largest of all is compared as if it were so large: what cancels, as
behind the norm of a single entry, leaves the rounding of its parts."""


def assert_maximal_is_original(supernet: SuperNetwork, inputs: Any) -> None:
    """The program of the maximal sub-network gives the outputs of the model in evaluation mode.

    They agree bit for bit; to 1e-6 of the largest where a module is traced as plain operators, as attention is.
    """
    exact = not any(type(module) in DECOMPOSITIONS for module in supernet.model.modules())
    (tensors, named), (args, kwargs) = as_program_call(inputs), as_call(inputs)
    with _put_back(supernet), torch.no_grad():
        supernet.eval()
        found = supernet.program(supernet.space.maximal())(*tensors, **named)
        expected = supernet.model(*args, **kwargs)
    if exact:
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    else:
        _assert_near(found, expected, 1e-6, "outputs of the maximal sub-network")


def assert_maximal_trains_as_original(supernet: SuperNetwork, inputs: Any, *, tolerance: float = 1e-6) -> None:
    """In training mode the maximal program gives the model's outputs, gradients and statistics.

    Models whose training mode runs the graph of evaluation mode, as a diagnostic says, are left out. Dropout draws the
    same numbers in both; none drops in models with attention modules, whose results lie in another order in memory, by
    which PyTorch draws. Arguments as for `assert_program_is_extracted`.
    """
    if supernet.ir.training:
        return
    (tensors, named), (args, kwargs) = as_program_call(inputs), as_call(inputs)
    runs = []
    taken_apart = any(type(module) in DECOMPOSITIONS for module in supernet.model.modules())
    with _put_back(supernet), NoDropout() if taken_apart else nullcontext():
        supernet.train()
        for module, given in ((supernet.program(supernet.space.maximal()), (tensors, named)), (None, (args, kwargs))):
            with _put_back(supernet):
                supernet.zero_grad()
                outputs = _same_noise(supernet.model if module is None else module, *given)
                _loss(outputs).backward()  # type: ignore[no-untyped-call]
                runs.append([outputs, *_trained(supernet)])
    for what, found, expected in zip(("outputs", "gradients", "statistics"), *runs, strict=True):
        least = CANCELLED * _largest(expected) if what == "gradients" else 1e-30
        _assert_near(found, expected, tolerance, f"{what} of the maximal sub-network in training mode", least=least)


def _trained(supernet: SuperNetwork) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients of all parameters, zero where there is none, and all buffers."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in supernet.model.parameters()]
    return gradients, [buffer.clone() for buffer in supernet.model.buffers()]


def assert_program_is_extracted(
    supernet: SuperNetwork, subnet: Subnet, inputs: Any, *, program: Program | None = None, tolerance: float = 1e-6
) -> None:
    """Program and extracted module of `subnet` agree, in the mode that the super-network is in.

    Outputs agree to `tolerance`, relative to the largest. In training mode BatchNorm changes the shared statistics of
    the kept channels as it changes those of the extracted module, and no others.

    Args:
        supernet: the super-network; its statistics are put back.
        subnet: which sub-network.
        inputs: as the example inputs of the super-network.
        program: the program to test, if it was made before.
        tolerance: 1e-6 for single precision.
    """
    args, kwargs = as_program_call(inputs)
    with _put_back(supernet):
        extracted = supernet.extract(subnet).train(supernet.training)
        expected_buffers = dict(supernet.model.named_buffers())
        expected_buffers = {name: buffer.clone() for name, buffer in expected_buffers.items()}
        program = supernet.program(subnet) if program is None else program
        found, expected = _same_noise(program, args, kwargs), _same_noise(extracted, args, kwargs)
        _assert_near(found, expected, tolerance, f"outputs of {subnet.to_json()}")
        for name, buffer in extracted.named_buffers():
            if name in expected_buffers:
                _slot(supernet, subnet, name).put(expected_buffers[name], buffer)
        for name, buffer in supernet.model.named_buffers():
            _assert_near(buffer, expected_buffers[name], tolerance, f"statistics {name} of {subnet.to_json()}")


def assert_extracted_is_oracle(
    supernet: SuperNetwork, subnet: Subnet, inputs: Any, *, tolerance: float = 1e-12
) -> None:
    """The extracted module agrees with the zeroed model in double precision: see `bnas.runtime.verify`.

    Raises:
        VerificationError: it does not.
    """
    verify(supernet.model, supernet, subnet, inputs, tolerance=tolerance)


def assert_gradients_match(
    supernet: SuperNetwork, subnet: Subnet, inputs: Any, *, program: Program | None = None, tolerance: float = 1e-6
) -> None:
    """Backward through a program gives the shared parameters the gradients of the extracted module.

    They stand at the kept entries, and all other gradients are zero or None; those of a smaller kernel are led back to
    the full one and to its matrices. Arguments as for
    `assert_program_is_extracted`; gradients and statistics of the super-network are put back.
    """
    args, kwargs = as_program_call(inputs)
    shared = dict(supernet.model.named_parameters(remove_duplicate=False))
    with _put_back(supernet):
        supernet.zero_grad()
        extracted = supernet.extract(subnet).train(supernet.training)
        program = supernet.program(subnet) if program is None else program
        for module in (program, extracted):
            _loss(_same_noise(module, args, kwargs)).backward()  # type: ignore[no-untyped-call]
        trained = {**shared, **{f"matrix {name}": m for name, m in supernet.kernel_matrices.named_parameters()}}
        expected = {id(tensor): torch.zeros_like(tensor) for tensor in trained.values()}
        for name, tensor in extracted.named_parameters():
            if tensor.grad is not None:
                _lead_back(_slot(supernet, subnet, name), tensor.grad, expected)
        largest = _largest(expected.values())
        for name, tensor in trained.items():
            found = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
            what = f"gradient of {name} of {subnet.to_json()}"
            _assert_near(found, expected[id(tensor)], tolerance, what, least=CANCELLED * largest)


def assert_onnx_is_extracted(supernet: SuperNetwork, subnet: Subnet, inputs: Any, *, tolerance: float = 1e-4) -> None:
    """The lowered sub-network gives the extracted module's outputs on ONNX Runtime, relative to the largest.

    Where a network enlarges rounding (norms of few entries do), ONNX Runtime may be off by four times as much as the
    module itself is from its outputs in double precision.
    """
    args, kwargs = as_program_call(inputs)
    extracted, tensors = supernet.extract(subnet), [*args, *kwargs.values()]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = lower(extracted, tensors).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    arrays = [tensor.detach().cpu().numpy() for tensor in tensors]
    found = [torch.from_numpy(one) for one in session.run(None, dict(zip(names, arrays, strict=True)))]
    with torch.no_grad():
        expected = [tensor.cpu() for _, tensor in named_outputs(extracted(*args, **kwargs))]
    what = f"ONNX outputs of {subnet.to_json()}"
    try:
        _assert_near(found, expected, tolerance, what)
    except AssertionError:
        _assert_near(found, expected, 4 * _rounding(extracted, args, kwargs, expected), what)


def _in_double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _rounding(module: nn.Module, args: Any, kwargs: Any, outputs: list[Tensor]) -> float:
    """How far the outputs of a module are from those in double precision, relative to the largest of each."""
    given, named = tree_map(_in_double, (args, dict(kwargs)))
    with torch.no_grad():
        exact = [one for _, one in named_outputs(copy.deepcopy(module).double()(*given, **named))]
    pairs = ((one.double(), other) for one, other in zip(outputs, exact, strict=True) if one.numel())
    return max((float((a - b).abs().max()) / max(float(b.abs().max()), 1e-30) for a, b in pairs), default=0.0)


def _lead_back(slot: Slot, gradient: Tensor, expected: Mapping[int, Tensor]) -> None:
    """Put the gradient of what `slot` takes where it comes from: `expected` is by the ``id`` of the parameter."""
    if slot.shrink is None:
        slot.put(expected[id(slot.shared)], gradient)
        return
    sources = [slot.shared, *slot.shrink.parameters()]
    for source, part in zip(sources, torch.autograd.grad(slot.take(slot.shared), sources, gradient), strict=True):
        expected[id(source)].add_(part)


def _slot(supernet: SuperNetwork, subnet: Subnet, name: str) -> Slot:
    skeleton = supernet.skeleton
    return skeleton.slot(supernet.model, name, skeleton.assignment(subnet))


def _same_noise(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Call it with the same random numbers each time: dropout drops the same entries."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return module(*args, **kwargs)


def _loss(outputs: Any) -> Tensor:
    """A number in which every output has another weight."""
    total = torch.zeros(())
    for tensor in tree_leaves(outputs):
        weights = torch.linspace(-1, 1.5, tensor.numel(), dtype=tensor.dtype, device=tensor.device)
        total = total + (tensor * weights.view(tensor.shape)).sum().cpu()
    return total


def _assert_near(found: Any, expected: Any, tolerance: float, what: str, *, least: float = 1e-30) -> None:
    """All tensors agree to `tolerance`, relative to the largest entry of each expected one, but at least to `least`."""
    pairs = zip(tree_leaves(found), tree_leaves(expected), strict=True)
    for one, other in pairs:
        largest = float(other.detach().abs().max()) if other.numel() else 0.0

        def message(text: str) -> str:
            return f"{what}: {text}"

        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * max(largest, least), msg=message)


def _largest(tensors: Iterable[Tensor]) -> float:
    return max((float(one.abs().max()) for one in tensors if one.numel()), default=0.0)


@contextmanager
def _put_back(supernet: SuperNetwork) -> Iterator[None]:
    """Put mode, gradients and buffers back as they were, the same tensors with the same values."""
    modes = {module: module.training for module in supernet.modules()}
    gradients = {tensor: tensor.grad for tensor in supernet.parameters()}
    changed = [*supernet.buffers(), *(grad for grad in gradients.values() if grad is not None)]
    values = [tensor.clone() for tensor in changed]
    try:
        yield
    finally:
        set_modes(modes)
        for tensor, grad in gradients.items():
            tensor.grad = grad
        with torch.no_grad():
            for one, value in zip(changed, values, strict=True):
                one.copy_(value)
