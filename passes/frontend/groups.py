"""The process group of `torch.distributed`: what PyTorch imports must not keep it to the end of the process."""

from __future__ import annotations

from types import FunctionType

import torch.distributed as dist


def release_group() -> None:
    """Let no default argument of PyTorch hold a process group, so that `destroy_process_group` ends its threads.

    The functions of `torch.distributed.nn` have ``group=group.WORLD`` as a default, which is the group of the moment
    when the module is imported. TorchDynamo imports it, and a capture imports TorchDynamo. A group that existed by then
    would outlive `destroy_process_group`: its threads run until the process ends, and abort some processes that end
    (``terminate called without an active exception``, exit code -6). With None, the default is the group of the call.
    """
    if not dist.is_available():
        return
    import torch.distributed.nn.functional as functional

    for function in vars(functional).values():
        if isinstance(function, FunctionType) and function.__defaults__:
            function.__defaults__ = tuple(
                None if isinstance(one, dist.ProcessGroup) else one for one in function.__defaults__
            )
