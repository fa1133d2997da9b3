"""Factories of models and data by name: ``package.module:FACTORY`` or ``path/file.py:FACTORY``.

A configuration contains only the name, so the name is checked before any code runs: Python's own modules are refused,
and a factory with a known wrong return type is not called.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bnas.passes.errors import BnasError
from bnas.passes.faults import short
from bnas.passes.wording import shown

from .files import is_file


class SourceError(BnasError):
    """A model, its weights or the data cannot be found or do not fit."""


SHOWN = 8
"""Number of functions and classes of a file that an error names."""
EXPORTED = ".pt2"
"""Suffix of exported programs; loading one may run code."""


def is_own_model(name: str) -> bool:
    """Whether a model's name refers to code or an exported program, not to a torchvision model."""
    return name.endswith(EXPORTED) or ":" in name.removeprefix("torchvision:")


def find_factory(
    name: str, folder: Path | None = None, wanted: type = object, called: str = "factory"
) -> Callable[..., Any]:
    """The function or class behind ``package.module:NAME`` or ``path/file.py:NAME``.

    Args:
        name: one of the two forms.
        folder: where files are looked for, by default the current one.
        wanted: the required class of the factory's result.
        called: name of the factory in error messages.

    Raises:
        SourceError: There is no such factory, it is one of Python's own functions, or it returns another class.
    """
    place, colon, attribute = name.rpartition(":")
    if not colon or not place or not attribute:
        raise SourceError(f"{short(name)} is not of the form package.module:FACTORY or path/file.py:FACTORY")
    module = _file_module((folder or Path()) / place) if place.endswith(".py") else _import(place)
    factory = getattr(module, attribute, None)
    if not callable(factory):
        names = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        own = [n for n in names if getattr(vars(module)[n], "__module__", None) == module.__name__]
        near = difflib.get_close_matches(attribute, names, n=1)
        meant = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(own[:SHOWN])}" if own else ""
        raise SourceError(f"{shown(place)} has no {called} {short(attribute)}{meant}")
    _check_kind(name, factory, wanted)
    return factory  # type: ignore[no-any-return]


def load_function(place: str, name: str, folder: Path | None = None) -> Callable[..., Any]:
    """Return the function ``package.module:NAME`` or ``path/file.py:NAME``; a class is called without arguments.

    Args:
        place: The key of the configuration, for errors.
        name: The name in one of the two forms.
        folder: Where files are looked for, by default the current one.

    Raises:
        SourceError: There is no such function, or the class needs arguments, or its objects cannot be called.
    """
    try:
        found = find_factory(name, folder, called="function or class")
    except SourceError as error:
        raise SourceError(f"{place}: {error}") from error
    if not inspect.isclass(found):
        return found
    try:
        made = found()
    except Exception as error:
        told = f"the class {shown(name)} cannot be called without arguments: {type(error).__name__}: {shown(error)}"
        raise SourceError(f"{place}: {told}; name a function that returns what you need") from error
    if not callable(made):
        raise SourceError(f"{place}: objects of the class {shown(name)} cannot be called; name a function")
    return made


def _is_python(module: str) -> bool:
    """Whether a module is one of Python's own: the standard library and the built-in functions."""
    return module.partition(".")[0] in sys.stdlib_module_names


def _check_kind(name: str, factory: Callable[..., Any], wanted: type) -> None:
    """Raise SourceError for a factory whose annotation shows that it does not return `wanted`."""
    named = inspect.isclass(factory) or inspect.isroutine(factory)
    if named and _is_python(home := str(getattr(factory, "__module__", ""))):
        raise SourceError(f"{name} belongs to Python's standard module {home!r}, which has no models and no data")
    if inspect.isclass(factory):
        promised, told = factory, "is the class"
    else:
        promised, told = _promised(factory), "says that it returns"
    if _differs(promised, wanted):
        promise = getattr(promised, "__qualname__", promised)
        raise SourceError(f"{name} {told} {promise}; a {wanted.__name__} is needed")


def _promised(factory: Callable[..., Any]) -> Any:
    """Return the annotated return type of a function; `object` if it has none or it cannot be resolved."""
    try:
        return typing.get_type_hints(factory).get("return", object)
    except Exception:  # an annotation is any expression
        return object


def _differs(promised: Any, wanted: type) -> bool:
    """Whether no value of the type `promised` can be a `wanted`."""
    kind = typing.get_origin(promised) or promised
    if kind in (typing.Union, types.UnionType):
        return all(_differs(one, wanted) for one in typing.get_args(promised))
    if kind is Any or not isinstance(kind, type):
        return False
    try:
        return not issubclass(kind, wanted) and not issubclass(wanted, kind)
    except TypeError:  # a protocol
        return False


def _import(place: str) -> Any:
    if _is_python(place):
        told = f"{short(place)} is a standard module of Python, which has no models and no data"
        raise SourceError(f"{told}; to name your own file, write path/file.py:FACTORY")
    with running(place):
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name is None or not place.startswith(error.name):
                raise
            raise SourceError(
                f"there is no module {short(place)}; to name a file, write path/file.py:FACTORY"
            ) from error


def _file_module(path: Path) -> Any:
    """Import a file as a module. Like a script, it can import other files of its folder."""
    if not is_file(path):
        raise SourceError(f"there is no file {shown(path)}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    folder = str(path.parent.resolve())
    sys.path.insert(0, folder)
    try:
        with running(str(path)):
            spec.loader.exec_module(module)
    finally:
        sys.path.remove(folder)
    return module


@contextmanager
def running(place: str) -> Iterator[None]:
    """Inside, an error of the user's code becomes a `SourceError` with the line that raised it."""
    try:
        yield
    except BnasError:
        raise
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
        raise SourceError(f"{place}{_line(place, error)} cannot be imported: {told}") from error


def _line(place: str, error: Exception) -> str:
    """Return the line of a file at which an error occurred: the last call in this file."""
    if isinstance(error, SyntaxError):
        return ""  # a syntax error has its own line
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(place)]
    return f":{lines[-1]}" if lines else ""
