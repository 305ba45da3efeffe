"""Error messages about settings, in plain words."""

import inspect
import re
import sys
from dataclasses import fields
from typing import Any, get_args, get_type_hints

import jsonargparse.typing
import torch

import mqvae
from mqvae.config.classes import UNFIT, find, public
from mqvae.config.options import GROUPS, HANDED_LATER, SLOTS, Start
from mqvae.data.source import ImageData
from mqvae.errors import did_you_mean

LONGEST = 1000  # characters of a message

VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
LISTS = dict.fromkeys(("tuple", "list", "Sequence"), "a list, as in [1, 2]")
# jsonargparse's conditions on numbers, in words.
RANGES = {
    "v>0": "be 1 or more",
    "v>0 and v<inf": "be above 0 and finite",
    "v>=0": "be 0 or more",
    "v>=0 and v<=1": "lie in 0 … 1",
    "v>=0 and v<1": "be 0 or more and less than 1",
    "v>=0 and v<inf": "be 0 or more and finite",
    "v>=0 and v<=4294967295": "lie in 0 … 4294967295",
}


def explained(message: str, options: list[str], dashes: str = "") -> str:
    """jsonargparse's message, in the words of somebody who wrote a setting.

    Args:
        message: From the outside in: where it is, and what was being made there.
        options: Every option, with its dashes.
        dashes: What the writer put before a name.
    """
    try:
        return _shortened(_explained(message, options, dashes))
    except (LookupError, TypeError, AttributeError, NameError):  # of another form than the known
        return _shortened(_flat(message))


def _explained(message: str, options: list[str], dashes: str) -> str:
    keys = re.findall(r'Parser key "([\w.]+)"', message)
    classes = re.findall(r"Problem with given class_path '([\w.]+)'", message)
    key = dashes + ".".join(keys) if keys else ""

    def said(*patterns: str) -> str:
        found = (re.search(pattern, message) for pattern in patterns)
        return next((match[1].strip() for match in found if match), "")

    value = said(
        r"(?:Given|Got) value: (.*)", r"(\S+) (?:does not conform|not an?\b)", r": '(.*)'$"
    )
    if required := said(r"arguments are required: (.+)"):
        if keys or required == "run":  # of a start's run jsonargparse names no place
            return f"{key or f'{dashes}from'}.{required} must be set."
        return f"{required} must be set: `base: paper` in the file is a beginning."
    if classes and (
        name := said(r"Option '([\w.]+)' is not", r"nrecognized arguments: --([\w.]+)")
    ):
        arguments = inspect.signature(_at(classes[-1])).parameters.values()
        taken = [a.name for a in arguments if a.kind not in VARIADIC and a.name not in HANDED_LATER]
        hint = f" The rate is {key}_lr." if name == "lr" else did_you_mean(name, taken)
        owner, listed = classes[-1].rpartition(".")[2], ", ".join(taken) or "none"
        return f"there is no option {key}.{name} of {owner}.{hint} Options: {listed}."
    if name := said(r"Option '([\w.]+)' is not", r"does not accept option '([\w.]+)'"):
        name = ".".join(filter(None, (said(r"Group '([\w.]+)'"), name)))
        known = [o.lstrip("-") for o in options if not o.endswith(".help")]
        known += [f"data.{field.name}" for field in fields(ImageData)]
        return f"there is no setting '{name}'.{did_you_mean(name, known)}"
    if literal := said(r"Expected a typing.Literal\[(.*?)\]"):
        known = re.findall(r"[\w-]+", literal)
        return (
            f"{key} must be one of {', '.join(known)}, got '{value}'.{did_you_mean(value, known)}"
        )
    if restriction := said(r"to restriction (.*)"):
        return f"{key} must {RANGES.get(restriction, restriction)}, got {value}."
    if number := said(r"Not of type (\w+)"):
        kind = "int" if issubclass(getattr(jsonargparse.typing, number), int) else "float"
        return f"{key} expects {kind}, got '{value}'."
    if kind := said(r"Expected an? <class '(?!NoneType)(?:[\w.]+\.)?(\w+)'>"):
        kind = LISTS.get(kind, kind)
        return f"{key} expects {kind}, got '{value}'."
    if (kind := said(r"Subclasses are disabled for (\w+)")) or keys == ["from"]:
        groups: dict[str, type[Any]] = {"from": Start, **GROUPS}
        group = next((name for name, each in groups.items() if each.__name__ == kind), "from")
        own = ", ".join(field.name for field in fields(groups[group]))
        return f"{dashes}{group} takes settings of its own, no class or value: {own}."
    path = said(
        *(r"mport path string: (\S+)", r"Import path (\S+\.\S+)", r"Importing '(\S+)'"),
        r"but (\S+) is abstract",
    )
    unusable = (
        r"o module named '| is abstract|no attribute '|subclass|class_path|Expected a path but"
    )
    if path or re.search(unusable, message):
        bad = classes[-1] if len(classes) == len(keys) else ""
        name = (path or bad or said(r"class_path': ([^,}]+)") or value).strip("'")
        known = choices(_base_of(keys, classes))
        short = name.removeprefix("mqvae.")
        name = name if short in known else short
        home = name.partition(".")[0] if "." in name else ""
        own = (
            ""
            if home in ("", "torch", *sys.stdlib_module_names) or home in sys.modules
            else f" For a class of your own add --import {name.rpartition('.')[0]}, or import it."
        )
        meant = f"{did_you_mean(name, known)}{own} Choices: {', '.join(known)}."
        return f"{key} has no choice '{name}'.{meant}"
    if re.search(r"unhashable type: |argument of type '\w+' is not iterable", message):
        known = choices(_base_of(keys, classes))
        return f"{key}.class_path must name a class. Choices: {', '.join(known)}."
    return _flat(message)


def _flat(message: str) -> str:
    return re.sub(r"\s*\n\s*(- )?", " ", message).strip()


def _shortened(text: str) -> str:
    """One line that a terminal holds, however much was written where a word belongs."""
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"


def choices(base: Any) -> list[str]:
    """The short names of the classes derived from one."""
    kinds = [k for name, k in public().items() if issubclass(k, base) and k.__name__ == name]
    abstract = (torch.optim.Optimizer, mqvae.LookAhead)
    fit = [k for k in kinds if not inspect.isabstract(k) and k not in abstract]
    return [k.__name__ for k in fit if k.__name__ not in UNFIT]


def _base_of(keys: list[str], classes: list[str]) -> Any:
    """Base class of a component: that of its slot, or the type of its argument."""
    if len(keys) == 1:
        return SLOTS[keys[0]][0]
    hint = get_type_hints(_at(classes[len(keys) - 2]).__init__)[keys[-1]]
    return tuple(kind for kind in (hint, *get_args(hint)) if isinstance(kind, type))


def _at(class_path: str) -> Any:
    return find(class_path)
