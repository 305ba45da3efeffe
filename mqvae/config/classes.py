"""The classes that settings may name; looking one up imports nothing from elsewhere."""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from inspect import isabstract
from types import ModuleType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
import torch.utils.data
from jsonargparse import set_parsing_settings
from jsonargparse._common import parsing_settings

import mqvae

OURS = ("mqvae", "torch.optim", "torch.nn")
"""Modules that a file of settings may have imported."""
RUNS = "mqvae.__main__"  # importing it is running the program
PARENTS = re.compile(r"(mqvae|torch\.(optim|nn\.modules\.loss|utils\.data))\b")
"""Where a class must descend from."""
UNFIT = {
    "SparseAdam": "takes sparse gradients alone, which no network here has",
    "LBFGS": "evaluates the loss several times a step, which no update rule does",
}
"""Optimizers of torch that can step neither level, and why."""


def find(path: str) -> type | None:
    """The class at a path, or by its name alone; None if there is none.

    Only modules of `OURS` are imported. A class of another module is found where that is imported
    already, as by `--import MODULE`.
    """
    *home, name = path.split(".")
    if not all(part.isidentifier() for part in (*home, name)):
        return None
    if not home:
        return public().get(name)
    for depth in range(len(home), 0, -1):
        module = _module(".".join(home[:depth]))
        if module is not None:
            found = _inside(module, [*home[depth:], name])
            return found if isinstance(found, type) else None
    return None


def canonical(path: str) -> str:
    """A class's shortest path, the same however it was named; a path of none as it is."""
    kind = find(path)
    if kind is None:
        return path
    if public().get(kind.__name__) is not kind:
        return path
    module = kind.__module__.split(".")
    home = module[: 1 if module[0] == "mqvae" else 2]
    return ".".join([*home, kind.__name__])


def path_of(kind: type) -> str:
    """Path of a class, its shortest if it is public."""
    module = "mqvae" if kind.__name__ in mqvae.__all__ else kind.__module__
    return f"{module}.{kind.__qualname__}"


def is_ours(kind: type | None) -> bool:
    """Whether it is a class of mqvae, an optimizer or a loss of torch, or derived from one."""
    return kind is not None and any(PARENTS.match(k.__module__) for k in kind.__mro__)


@cache
def hints_of(kind: type) -> Mapping[str, Any]:
    """Types of a class's arguments; none where they cannot be told."""
    try:
        return get_type_hints(kind.__init__)  # type: ignore[misc]
    except (NameError, TypeError, AttributeError):
        return {}


def is_needed(kind: type, name: str) -> bool:
    """Whether an argument of a class cannot be None."""
    hint = hints_of(kind).get(name, Any)
    return hint is not Any and hint is not type(None) and type(None) not in get_args(hint)


@cache
def components_in(kind: type) -> Mapping[str, str]:
    """The arguments of a class that are components or lists of them.

    Args:
        kind: The class.

    Returns:
        What they are if no class is named, by their names; empty where one must be.
    """
    found = {}
    for name, hint in hints_of(kind).items():
        if kinds := bases_in(hint):
            path = f"{kinds[0].__module__}.{kinds[0].__qualname__}"
            found[name] = canonical(path) if len(kinds) == 1 and not _is_open(kinds[0]) else ""
    return found


def bases_in(hint: Any) -> tuple[type, ...]:
    """What components must be derived from, by the type of an argument; none if it takes none."""
    return tuple(k for k in _alternatives(hint) if isinstance(k, type) and _is_a_base(k))


def _alternatives(hint: Any) -> list[Any]:
    """The members of a union or list type."""
    if get_origin(hint) in (Union, UnionType, Sequence, list, tuple):
        return [each for part in get_args(hint) for each in _alternatives(part)]
    return [hint]


def choices(base: Any) -> list[str]:
    """The short names of the classes derived from one."""
    kinds = [k for name, k in public().items() if issubclass(k, base) and k.__name__ == name]
    abstract = (torch.optim.Optimizer, mqvae.LookAhead)
    fit = [k for k in kinds if not isabstract(k) and k not in abstract]
    return [k.__name__ for k in fit if k.__name__ not in UNFIT]


@contextmanager
def only_ours(config: Any = None) -> Iterator[None]:
    """Inside, jsonargparse imports what `find` does and nothing else.

    Args:
        config: Settings; classes of other modules in them that are imported already will do.
    """
    names = {word for word in _words(config) if "." in word and is_ours(find(word))}
    kinds = [kind for kind in map(find, names) if kind is not None]
    names |= {f"{kind.__module__}.{kind.__qualname__}" for kind in kinds}
    before = dict(parsing_settings)
    allowed = [name for name in (*OURS, *names) if "<" not in name]
    set_parsing_settings(
        import_path_denylist=["*", RUNS],
        import_path_allowlist=allowed,
        instantiate_subclass_spec_in_any=False,
    )
    try:
        yield
    finally:  # a program that takes mqvae as a library may use jsonargparse for its own
        parsing_settings.update(before)


def _module(name: str) -> ModuleType | None:
    ours = any(f"{name}.".startswith(f"{each}.") for each in OURS) and name != RUNS
    if not ours:
        return sys.modules.get(name)
    try:
        return import_module(name)
    except ImportError:
        return None


def _inside(module: ModuleType, names: list[str]) -> Any:
    found: Any = module
    for name in names:
        if found is mqvae or found is torch.optim:
            found = getattr(found, name, None)  # public names are imported late
        else:  # nothing that a module or a class may do when it is asked
            found = getattr(found, "__dict__", {}).get(name)
    return found


@cache
def public() -> Mapping[str, type]:
    """Classes by their names alone."""
    homes = (torch.nn.modules.loss, torch.optim, mqvae)
    found = {name: getattr(home, name) for home in reversed(homes) for name in home.__all__}
    return {name: kind for name, kind in found.items() if isinstance(kind, type)}


def _is_a_base(kind: type) -> bool:
    others = (torch.nn.modules.loss._Loss, torch.utils.data.Dataset)
    return kind.__module__.startswith("mqvae.") or kind in others


def _is_open(kind: type) -> bool:
    """Whether it only says what others must be."""
    return bool(getattr(kind, "__abstractmethods__", ())) or kind.__subclasses__() != []


def _words(config: Any) -> Iterator[str]:
    if isinstance(config, str):
        yield config
    elif isinstance(config, Mapping):
        for value in config.values():
            yield from _words(value)
    elif isinstance(config, list | tuple):
        for value in config:
            yield from _words(value)
