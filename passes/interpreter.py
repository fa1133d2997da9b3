"""The graph of an IR, run node by node on another module's tensors: to check what is made of it."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from torch.fx import Interpreter

from .frames import make_shell
from .ir import IR


class GraphInterpreter(Interpreter):
    """Runs the graph of `ir` on the tensors of `root`, a module of the structure of the captured one.

    What the graph has and the model has not comes from the IR: tensors made in forward, in the number type of `root`,
    and leaf modules, in the mode of `root`.
    """

    def __init__(self, ir: IR, root: nn.Module, *, garbage_collect_values: bool = True) -> None:
        super().__init__(root, garbage_collect_values=garbage_collect_values, graph=ir.graph)
        self.ir, self.root = ir, root
        self.own = {name: copy.deepcopy(module) for name, module in ir.modules.items()}
        self.extra_traceback = False

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """As in fx; leaf modules of the graph follow the mode that `root` is in now."""
        for module in self.own.values():
            module.train(self.root.training)
        return super().run(*args, **kwargs)

    def fetch_attr(self, target: str) -> Any:
        """As in fx, for what the graph calls its own too."""
        if target in self.own:
            return self.own[target]
        return self.ir.constant(target, self.root) if target in self.ir.constants else super().fetch_attr(target)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """As in fx; a layer of a user's class that is called as a plain layer is one here too."""
        if target not in self.ir.plain:
            return super().call_module(target, args, kwargs)
        source = self.ir.module(str(target), self.root)
        shell = make_shell(source, self.ir.plain[target])
        shell._parameters.update(source._parameters)
        shell._buffers.update(source._buffers)
        return shell(*args, **kwargs)
