"""A torch.fx tracer that carries values: a meta tensor stands beside every proxy.

``x.shape``, ``x.size(0)``, ``len(x)`` and ``if`` on shapes therefore just run as Python, and no separate shape
propagation is needed. The batch axis is the prime `BATCH`, so that any size that is a multiple of it is known to
carry the batch and stays symbolic in the graph. A submodule that cannot be traced becomes an opaque leaf, with a
diagnostic; the model itself is left exactly as it was.
"""

from __future__ import annotations

import builtins
import copy
import operator
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.fx as fx
import torch.fx._symbolic_trace as symbolic_trace
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from .attention import DECOMPOSITIONS
from .calls import DROPOUTS, form_of
from .errors import Diagnostic, TraceError, add_note

BATCH = 1009
"""The size of the batch axis while tracing: a prime that no model uses as a width."""


class Evaluating(int):
    """``self.training`` while a model is traced: false; tells where the forward asks for it."""

    asked: Callable[[], None]

    def __bool__(self) -> bool:
        """False: the branch of evaluation mode is taken."""
        self.asked()
        return False


class ValueProxy(fx.Proxy):
    """A proxy that answers questions about its shape, type and length with plain Python values."""

    @property
    def value(self) -> Any:
        """The meta tensor, or the structure of meta tensors, that the node stands for."""
        return self.node.meta["value"]

    _is_param = False  # read by isinstance(x, nn.Parameter)
    shape = property(lambda self: self.value.shape)
    ndim = property(lambda self: self.value.ndim)
    dtype = property(lambda self: self.value.dtype)
    requires_grad = property(lambda self: self.value.requires_grad)
    is_cuda = property(lambda self: self.device.type == "cuda")

    @property
    def device(self) -> torch.device:
        """The device of the model, not ``meta``: tensors made in forward must be real ones."""
        return self.tracer.device  # type: ignore[attr-defined, no-any-return]

    def __getattr__(self, name: str) -> Any:
        """Flags and numbers of the value (``is_nested``, ``layout``) as they are; anything else as in fx."""
        found = None if name.startswith("_") else getattr(self.node.meta.get("value"), name, None)
        plain = isinstance(found, bool | int | float | str | torch.dtype | torch.layout | torch.memory_format)
        return found if plain else super().__getattr__(name)

    def size(self, dim: int | None = None) -> Any:
        """As `torch.Tensor.size`."""
        return self.value.size() if dim is None else self.value.size(dim)

    def dim(self) -> int:
        """As `torch.Tensor.dim`."""
        return int(self.value.dim())

    def numel(self) -> int:
        """As `torch.Tensor.numel`."""
        return int(self.value.numel())

    def __len__(self) -> int:
        """As the value's own length."""
        return len(self.value)

    def __iter__(self) -> Iterator[Any]:
        """One proxy for each entry of the first axis, or for each item of a tuple; never one for each sample."""
        if len(self.value) and len(self.value) % BATCH == 0:
            raise TraceError("it takes the samples of a batch one by one")
        return iter([operator.getitem(self, i) for i in range(len(self.value))])

    def __hash__(self) -> int:
        """By identity, as tensors do."""
        return id(self)


class ValueTracer(fx.Tracer):
    """Traces a model called with given positional and keyword inputs; see the module's text."""

    proxy_buffer_attributes = True

    def __init__(self) -> None:
        super().__init__(autowrap_functions=())
        self.constants: dict[str, Tensor] = {}
        self.modules: dict[str, nn.Module] = {}
        self.diagnostics: list[Diagnostic] = []
        self.device = torch.device("cpu")
        self._installed: set[nn.Module] = set()
        self._inputs: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self._attributes: dict[str, fx.Proxy] = {}

    def trace_model(self, root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Graph:
        """The graph of ``root(*args, **kwargs)``; the tensors among the inputs become its placeholders.

        Raises:
            TraceError: the model's own forward cannot be traced; names the module and the line.
        """
        self._inputs, self._installed = (args, kwargs), set(root.modules())
        self.device = next((p.device for p in root.parameters()), torch.device("cpu"))
        with _own_functions_only(), _proxies_are_tensors(), self._evaluating(root), BatchFactories(self):
            try:
                return self.trace(root)
            except Exception as error:
                raise _trace_error(root, "", error) from error

    @contextmanager
    def _evaluating(self, root: nn.Module) -> Iterator[None]:
        """All modules in evaluation mode; the mode notes who asks for it. Afterwards the modes are as they were."""
        modes = {module: (name, module.training) for name, module in root.named_modules()}
        asked = dict[str, None]()
        try:
            for module, (name, _) in modes.items():
                module.training = Evaluating()
                module.training.asked = partial(asked.__setitem__, name, None)
            yield
        finally:
            for module, (_, mode) in modes.items():
                module.training = mode
            why = "forward reads self.training: its evaluation branch is used"
            self.diagnostics += [Diagnostic(name or "the model", why) for name in asked]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Modules with a functional form are leaves; everything else is traced into."""
        return form_of(m) is not None

    def leaf(self, module: nn.Module) -> nn.Module:
        """`module`, as a leaf that belongs to the graph and not to the model."""
        self.add_module(module.eval())
        return module

    def add_module(self, module: nn.Module) -> str:
        """The name of a new leaf module that belongs to the graph and not to the model."""
        name = f"_{type(module).__name__.lower()}_{len(self.modules)}"
        self.modules[name] = module
        return name

    def module(self, path: str) -> nn.Module:
        """The module of the model or of the graph at `path`."""
        return self.modules[path] if path in self.modules else self.root.get_submodule(path)

    def path_of_module(self, mod: nn.Module) -> str:
        """As in fx, for the graph's own modules too."""
        own = next((name for name, module in self.modules.items() if module is mod), None)
        if own is None and mod not in self._installed and not [*mod.parameters(), *mod.buffers()]:
            own = self.add_module(mod)  # made in the forward
        return super().path_of_module(mod) if own is None else own

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A proxy that carries the node's value."""
        return ValueProxy(node, self)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        """As in fx; the proxies of parameters and buffers are remembered, to forget those that are undone."""
        self._attributes = parameter_proxy_cache
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Placeholders for the given inputs only: optional arguments keep their defaults without asserts."""
        args, kwargs = self._inputs
        names = _parameter_names(self.root.forward, len(args))
        batch = next((t.shape[0] for t in tree_leaves(self._inputs) if isinstance(t, Tensor) and t.ndim), None)

        def placeholder(name: str, example: Any) -> Any:
            if not isinstance(example, Tensor):
                return example
            shape = [BATCH if axis == 0 and n == batch else n for axis, n in enumerate(example.shape)]
            proxy = super(ValueTracer, self).create_proxy("placeholder", name, (), {})
            proxy.node.meta["value"] = torch.empty(shape, dtype=example.dtype, device="meta")
            return proxy

        bound = [placeholder(name, value) for name, value in zip(names, args, strict=True)]
        named = {name: placeholder(name, value) for name, value in kwargs.items()}
        return (lambda root, *inputs: root_fn(root, *inputs, **named)), [self.root, *bound]

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> Any:
        """As in fx, but a result that holds no tensor (a size, a flag) is returned as the plain value.

        Nor is there a node for ``x.to(...)`` that returns x itself: device and type of today would stay in the graph.
        """
        if kind == "call_method" and target == "to" and self._changes_nothing(*args, **kwargs):
            return args[0]
        dropout = self._dropout(target, *args, **kwargs) if target in DROPOUTS else None
        if dropout is not None:
            return dropout
        args, kwargs = tree_map(_plain_flag, (args, kwargs))
        if kind == "call_method" and str(target).startswith("new_") and not self._carries_batch(args, kwargs):
            return self._made(str(target), *args, **kwargs)
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        value = self._evaluate(proxy.node)
        proxy.node.meta["value"] = value
        proxy.node.meta["scope"] = self.scope.module_path
        return proxy if any(isinstance(leaf, Tensor) for leaf in tree_leaves(value)) else value

    def _changes_nothing(self, tensor: ValueProxy, *args: Any, non_blocking: bool = False, **kwargs: Any) -> bool:
        """Whether ``tensor.to(...)`` is the tensor itself."""
        asked = [*args, *(value for name, value in kwargs.items() if name in ("device", "dtype"))]
        plain = len(asked) == len(args) + len(kwargs) and all(isinstance(a, torch.device | torch.dtype) for a in asked)
        if _states_type(tensor.node):  # it may be another type than the parameters', though not today
            return False
        return plain and all(a in (self.device, tensor.dtype) for a in asked)

    def _dropout(self, function: Any, input: Any, p: float = 0.5, training: Any = True, inplace: bool = False) -> Any:
        """A dropout that follows the module's mode, as a module, so that programs can be trained; None for others."""
        if not isinstance(training, Evaluating):
            return None
        if not p:
            return input
        return self.create_proxy("call_module", self.add_module(DROPOUTS[function](p, inplace).eval()), (input,), {})

    def _carries_batch(self, *values: Any) -> bool:
        return any(isinstance(v, int) and v and v % BATCH == 0 for v in tree_leaves(values))

    def _made(self, method: str, like: ValueProxy, *args: Any, **kwargs: Any) -> Tensor:
        """A real tensor, as ``like.new_zeros(...)`` makes it: the forward may write into it."""
        made: Tensor = getattr(torch.empty(0, dtype=like.dtype, device=self.device), method)(*args, **kwargs)
        return made

    def create_arg(self, a: Any) -> Any:
        """As in fx, but tensors made in forward are kept here and not set as attributes of the user's model."""
        if isinstance(a, fx.Proxy):  # before fx sees it, which would take our proxy for the tensor it claims to be
            return a.node
        if isinstance(a, OrderedDict):  # fx would make a plain dict of it
            return self.create_proxy("call_function", type(a), *_of_mapping(a)).node
        if not isinstance(a, Tensor) or isinstance(a, nn.Parameter):
            return super().create_arg(a)
        if any(size % BATCH == 0 for size in a.shape if size):
            raise TraceError(f"a tensor of shape {tuple(a.shape)} is made in forward with the batch's own size")
        name = next((n for n, tensor in self.constants.items() if tensor is a), f"_constant_{len(self.constants)}")
        self.constants[name] = a
        return self.create_node("get_attr", name, (), {})

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Trace into `m`; where that fails, undo it and make `m` an opaque leaf."""
        last, stack = next(iter(reversed(self.graph.nodes))), dict(self.module_stack)
        if type(m) is nn.Identity and not (m._forward_hooks or m._forward_pre_hooks):
            return args[0] if args else kwargs["input"]
        if type(m) in DECOMPOSITIONS:
            forward = partial(DECOMPOSITIONS[type(m)], m, self.leaf)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception as error:
            for node in reversed(list(self.graph.nodes)):
                if node is last:
                    break
                self.graph.erase_node(node)
            for name in [n for n, known in self._attributes.items() if known.node._erased]:
                del self._attributes[name]
            self.module_stack.clear()  # fx leaves it as it was at the failure
            self.module_stack.update(stack)
            path = self.path_of_module(m)
            reason = _trace_error(m, path, error)
            try:
                proxy = self.create_proxy("call_module", path, args, kwargs)
            except Exception as inner:
                raise reason from inner
            self.diagnostics.append(Diagnostic(path, f"opaque, its inputs and outputs are rigid: {reason}"))
            return proxy

    def _evaluate(self, node: fx.Node) -> Any:
        """The value of a new node, computed on meta tensors: no data is touched."""
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._value)
        args, kwargs = tree_map(_to_meta, (args, kwargs))
        with torch.no_grad():
            if node.op == "get_attr":
                return _to_meta(self._attribute(str(node.target)))
            if node.op == "call_module":
                return self._run_module(self.module(str(node.target)), args, kwargs)
            if node.op == "call_method":
                moves = node.target in ("cpu", "cuda")  # which no meta tensor can follow
                return args[0] if moves else getattr(args[0], str(node.target))(*args[1:], **kwargs)
            if node.target in FACTORIES:
                kwargs = {**kwargs, "device": "meta"}
            return node.target(*args, **kwargs)  # type: ignore[operator]

    def _value(self, node: fx.Node) -> Any:
        if "value" not in node.meta:  # get_attr nodes that create_arg made
            node.meta["value"] = _to_meta(self._attribute(str(node.target)))
        return node.meta["value"]

    def _attribute(self, path: str) -> Any:
        if path in self.constants:
            return self.constants[path]
        owner, _, name = path.rpartition(".")
        return _stored(self.root.get_submodule(owner), name)

    def _run_module(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        form = form_of(module)
        if form is None:
            with symbolic_trace._maybe_revert_all_patches():  # fx has patched nn.Module's call and attributes
                return _run_opaque(module, args, kwargs)
        tensors = {n: _to_meta(_stored(module, n)) for n in form.tensors}
        settings = {n: getattr(module, n) for n in form.settings if n != "padding_mode"}
        if form.op is F.batch_norm:
            settings["training"] = tensors["running_mean"] is None
        elif form.op in DROPOUTS:  # in evaluation mode they hand on their input itself: its memory is then shared
            settings["training"] = False
        return form.op(*args, **tensors, **settings, **kwargs)  # type: ignore[operator]


def revalue(
    root: nn.Module, own: Mapping[str, nn.Module], constants: Mapping[str, Tensor], graph: fx.Graph
) -> Iterator[fx.Node]:
    """Compute the value of every node of a graph anew; inputs keep theirs. Yields each node that has it then."""
    tracer = ValueTracer()
    tracer.root, tracer.modules, tracer.constants = root, dict(own), dict(constants)
    for node in graph.nodes:
        try:
            if node.op not in ("placeholder", "output"):
                node.meta["value"] = tracer._evaluate(node)
        except Exception as error:
            add_note(error, f"at the node {node.format_node()}")
            raise
        if node.op != "output":
            yield node


def _stored(module: nn.Module, name: str) -> Any:
    """An attribute as it is stored: fx has patched ``getattr`` to make proxies of parameters."""
    for table in (module._parameters, module._buffers, module._modules):
        if name in table:
            return table[name]
    return getattr(module, name)


def _states_type(node: fx.Node) -> bool:
    """Whether the call says which number type its result has."""
    return node.target == "float" or any(isinstance(v, torch.dtype) for v in (*node.args, *node.kwargs.values()))


def _of_mapping(value: OrderedDict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments that make the mapping again: fields of a data class by name."""
    return ((), dict(value)) if is_dataclass(value) else ((dict(value),), {})


def _plain_flag(value: Any) -> Any:
    return False if isinstance(value, Evaluating) else value


def _to_meta(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("meta")
    if not isinstance(value, Tensor) or value.is_meta:
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def _run_opaque(module: nn.Module, args: Any, kwargs: Any) -> Any:
    """The value of a module that cannot be traced: a copy of it is run on zeros at two batch sizes."""
    twin = copy.deepcopy(module).eval()

    def run(batch: int) -> Any:
        def real(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            shape = [n // BATCH * batch if n and n % BATCH == 0 else n for n in value.shape]
            return torch.zeros(shape, dtype=value.dtype, device=next((p.device for p in twin.parameters()), None))

        return twin(*tree_map(real, args), **tree_map(real, kwargs))

    def lift(two: Any, three: Any) -> Any:
        if not isinstance(two, Tensor):
            return two
        shape = [a if a == b else a // 2 * BATCH for a, b in zip(two.shape, three.shape, strict=True)]
        return torch.empty(shape, dtype=two.dtype, device="meta")

    with torch.random.fork_rng(devices=[]):
        return tree_map(lift, run(2), run(3))


FACTORIES: frozenset[Any] = frozenset(
    {torch.zeros, torch.ones, torch.full, torch.empty, torch.rand, torch.randn, torch.arange}
)


class BatchFactories(TorchFunctionMode):
    """Tensors made in forward with the batch's own size become nodes; all others are made at once, as constants."""

    def __init__(self, tracer: ValueTracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called for every function of torch."""
        kwargs = kwargs or {}
        if func in FACTORIES and str(kwargs.get("device")) != "meta" and self.tracer._carries_batch(args, kwargs):
            return self.tracer.create_proxy("call_function", func, args, kwargs)
        return func(*args, **kwargs)


@contextmanager
def _own_functions_only() -> Iterator[None]:
    """Trace into functions that libraries wrap for the whole process (`torch.fx.wrap`), then restore the table."""
    table = symbolic_trace._wrapped_fns_to_patch
    saved = dict(table)
    table.clear()
    try:
        yield
    finally:
        table.update(saved)


@contextmanager
def _proxies_are_tensors() -> Iterator[None]:
    """Models that ask ``isinstance(x, Tensor)`` hear yes of a proxy that stands for a tensor.

    Only in Python: a proxy whose ``__class__`` says so is one for C code too, which then reads its memory as a
    tensor's and crashes the process (``torch.pow(x, 2)``).
    """
    plain, tensor = builtins.isinstance, torch.empty(0, device="meta")

    def claims(value: Any, kind: Any) -> bool:
        if plain(value, kind):
            return True
        return type(value) is ValueProxy and plain(value.node.meta.get("value"), Tensor) and plain(tensor, kind)

    builtins.isinstance = claims
    try:
        yield
    finally:
        builtins.isinstance = plain


def _parameter_names(forward: Callable[..., Any], count: int) -> list[str]:
    code = forward.__code__ if hasattr(forward, "__code__") else None
    names = list(code.co_varnames[1 : code.co_argcount]) if code else []
    return [names[i] if i < len(names) else f"input_{i}" for i in range(count)]


_TORCH = Path(torch.__file__).parent


def _trace_error(module: nn.Module, path: str, error: Exception) -> TraceError:
    """Names the module and the innermost line of the user's own code."""
    if isinstance(error, TraceError) and error.__cause__ is not None:
        return error
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not Path(f.filename).is_relative_to(_TORCH) and f.filename != __file__]
    line = f", {own[-1].filename}:{own[-1].lineno}: {own[-1].line}" if own else ""
    where = f"module {path!r} ({type(module).__name__})" if path else f"the model ({type(module).__name__})"
    return TraceError(
        f"cannot trace {where}{line}: {error}. Code that branches on the values of tensors belongs in a submodule "
        "of its own, which then stays rigid while the rest becomes elastic"
    )
