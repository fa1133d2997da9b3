"""A second device, called "second": it computes on the CPU, and refuses to mix its tensors with those of the CPU.

It shows that a run is on one device throughout, where there is no other than the CPU. Importing it registers the
device with PyTorch, for good: do so in a process of its own.

    python second_device.py ARGUMENTS ...    # is `bnas ARGUMENTS ...`
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

NAME = "second"


class There(Tensor):
    """A tensor on the second device, with the numbers of `inner`, which is on the CPU."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> There:
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        made = Tensor._make_wrapper_subclass(cls, inner.size(), device=f"{NAME}:0", **layout)
        made.inner = inner
        return made

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            twin = There(self.inner.detach().clone(memory_format=torch.preserve_format))
            memo[id(self)] = nn.Parameter(twin, self.requires_grad) if isinstance(self, nn.Parameter) else twin
        return memo[id(self)]

    @classmethod
    def __torch_dispatch__(cls, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(operator, args, kwargs or {})


def run(operator: Any, args: Any, kwargs: Any) -> Any:
    """An operator on tensors that must all be on one device; numbers without axes may be on the CPU, as on a GPU."""
    name, leaves = operator.overloadpacket.__name__, tree_leaves((args, kwargs))
    there = [one for one in leaves if isinstance(one, There)]
    here = [one for one in leaves if isinstance(one, Tensor) and not isinstance(one, There) and one.ndim]
    if there and here and name not in ("_to_copy", "copy_"):
        raise RuntimeError(f"{operator}: tensors are on {NAME} and on the CPU")
    asked = kwargs.get("device")
    stays = isinstance(args[0], There) if name == "copy_" else bool(there)
    wrapped = stays if asked is None else torch.device(asked).type == NAME
    plain, named = tree_map(lambda one: one.inner if isinstance(one, There) else one, (args, dict(kwargs)))
    if asked is not None:
        named["device"] = torch.device("cpu")
    found = operator(*plain, **named)
    known = {id(one.inner): one for one in there}  # what was written in place stays the tensor that it was

    def wrap(one: Any) -> Any:
        return known[id(one)] if id(one) in known else There(one) if isinstance(one, Tensor) else one

    return tree_map(wrap, found) if wrapped else found


class Backend(backend_registration._DummyBackendModule):  # type: ignore[misc]
    """What PyTorch asks a device for; its generators are those of the CPU."""

    def manual_seed(self, seed: int) -> None:
        """They have their seed."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


backend_registration._setup_privateuseone_for_python_backend(NAME, Backend())
_library = torch.library.Library("_", "IMPL", "PrivateUse1")
_library.fallback(lambda operator, *args, **kwargs: run(operator, args, kwargs))

if __name__ == "__main__":
    from bnas.cli.app import main

    main()
