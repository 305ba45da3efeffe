"""What is said of settings that do not fit."""

import inspect
import re
from pydoc import locate
from typing import Any, get_args, get_type_hints

import jsonargparse.typing
import torch

import mqvae
from mqvae.settings.options import HANDED_LATER, SLOTS
from mqvae.settings.presets import nearest

# jsonargparse's conditions on numbers, in words.
RANGES = {
    "v>0": "be 1 or more",
    "v>=0": "be 0 or more",
    "v>=0 and v<=1": "lie in 0 … 1",
    "v>=0 and v<1": "be 0 or more and less than 1",
    "v>=0 and v<inf": "be 0 or more and finite",
    f"v>=0 and v<{2**32}": f"lie in 0 … {2**32 - 1}",
}
VALUES = (r"(?:Given|Got) value: (.*)", r"(\S+) does not conform", r"(\S+) not an?\b", r": '(.*)'$")


def explained(message: str, options: list[str], dashes: str = "") -> str:
    """jsonargparse's message, in the words of somebody who wrote a setting.

    Args:
        message: What jsonargparse says: from the outside in, where it is and what is made there.
        options: Every option there is, with its dashes.
        dashes: What the writer put before a name.
    """
    keys = re.findall(r'Parser key "([\w.]+)"', message)
    classes = re.findall(r"Problem with given class_path '([\w.]+)'", message)
    key = dashes + ".".join(keys)
    found = (re.search(pattern, message) for pattern in VALUES)
    value = next((match[1].strip() for match in found if match), "")

    if "Unable to load config" in message:
        example = next((o for o in options if o.startswith(f"--{keys[0]}.")), "")
        return f"--{keys[0]} takes a YAML file; a single setting goes as in {example}."
    if required := re.search(r"arguments are required: (.+)", message):
        return f"{required[1]} must be set: `base: paper` in the file is a beginning."
    if classes and (
        refused := re.search(r"Option '([\w.]+)'|unrecognized arguments: --([\w.]+)", message)
    ):
        name, kind = refused[1] or refused[2], classes[-1]
        taken = list(inspect.signature(_located(kind)).parameters)
        base = next((base for base in HANDED_LATER if issubclass(_located(kind), base)), None)
        taken = [a for a in taken if a not in HANDED_LATER.get(base, ())]
        rate = f" The rate is {key.replace('.init_args', '')}_lr." if name == "lr" else ""
        return (
            f"there is no option {key}.{name} of {kind.rpartition('.')[2]}."
            f"{rate or nearest(name, taken)} Options: {', '.join(taken) or 'none'}."
        )
    if unknown := re.search(r"nrecognized arguments: ([^\s=]+)", message):
        if not unknown[1].startswith("-"):
            return f"there is an argument too many: '{unknown[1]}'."
        return f"there is no option {unknown[1]}.{nearest(unknown[1], options)} --help lists them."
    if refused := re.search(
        r"(?:Group '([\w.]+)' does not accept option|Option) '([\w.]+)'", message
    ):
        name = ".".join(filter(None, refused.groups()))
        return f"there is no setting '{name}'.{nearest(name, [o.lstrip('-') for o in options])}"
    if words := re.search(r"Expected a typing.Literal\[(.*?)\]", message):
        known = re.findall(r"[\w-]+", words[1])
        return f"{key} must be one of {', '.join(known)}, got '{value}'.{nearest(value, known)}"
    if restriction := re.search(r"to restriction (.*)", message):
        return f"{key} must {RANGES.get(restriction[1], restriction[1])}, got {value}."
    if number := re.search(r"Not of type (\w+)", message):
        whole = issubclass(getattr(jsonargparse.typing, number[1]), int)
        return f"{key} expects {'int' if whole else 'float'}, got '{value}'."
    kinds = [k for k in re.findall(r"Expected an? <class '(\w+)'>", message) if k != "NoneType"]
    if kinds:
        return f"{key} expects {kinds[0]}, got '{value}'."
    unknown = re.search(r"path string: (\S+)|Import path (\S+\.\S+)", message)
    missing = re.search(r"has no attribute '|No module named '", message)
    if unknown or (missing and classes) or "subclass" in message or "class_path" in message:
        name = next(filter(None, unknown.groups())) if unknown else value
        name = classes[-1] if missing and classes else name
        return no_choice(key, name, choices(_base_of(keys, classes)))
    return re.sub(r"\s*\n\s*(- )?", " ", message).strip()


def no_choice(key: str, name: str, known: list[str]) -> str:
    """That a component goes by no name of those there are."""
    name = name.removeprefix("mqvae.")
    return f"{key} has no choice '{name}'.{nearest(name, known)} Choices: {', '.join(known)}."


def choices(base: type) -> list[str]:
    """The short names of classes derived from one."""
    public = [getattr(mqvae, name) for name in mqvae.__all__]
    public += [getattr(torch.optim, name) for name in dir(torch.optim)]
    return [
        kind.__name__
        for kind in public
        if isinstance(kind, type)
        and issubclass(kind, base)
        and not inspect.isabstract(kind)
        and kind is not torch.optim.Optimizer
    ]


def _base_of(keys: list[str], classes: list[str]) -> type:
    """What a component must be derived from: its slot's class, or its argument's type."""
    if len(keys) == 1:
        return SLOTS[keys[0]]
    hint = get_type_hints(_located(classes[len(keys) - 2]).__init__)[keys[-1]]
    return next(kind for kind in (hint, *get_args(hint)) if isinstance(kind, type))


def _located(class_path: str) -> Any:
    return locate(class_path)
