"""Command lines and YAML files with mistakes in them, drawn from the real settings.

    python -m campaigns.bad_settings [--count 2000] [--first 0] [--through-main 40]

Each case is drawn by its number: a preset, options and sometimes a file, of right and wrong names,
values and components. It goes through the real parser, and what that takes through putting the
parts together (on the digits that scikit-learn brings). A case ends well, or in a `MqvaeError` of
one readable line; any other exception, and anything left behind, is a defect. `--through-main` of
those that are refused go through the program itself, for its exit code and what it prints. Memory
is limited to a few GiB more than the process has, so that sizes without sense are refused here as
on a machine that is full.
"""

import argparse
import contextlib
import io
import os
import random
import resource
import signal
import string
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field, replace
from inspect import signature
from pathlib import Path
from typing import Any

import torch
import yaml

import mqvae
from mqvae.cli import main as program
from mqvae.config import Settings, from_arguments
from mqvae.config.classes import components_in, public
from mqvae.config.options import SLOTS, settings_parser
from mqvae.data import ImageData
from mqvae.errors import MqvaeError
from mqvae.optional import ExtraMissing
from mqvae.training import tried

SECONDS = 300  # a case may take
GIB = 6  # of memory beside what there is before the first
LONGEST = 1200  # characters of a message

PRESETS = ["digits-tiny", "digits-tiny", "methods/mq-vae", "recommended", "methods/ema"]
RIGHT = [
    "1",
    "2",
    "3",
    "4",
    "8",
    "16",
    "0",
    "0.1",
    "0.5",
    "1e-3",
    "true",
    "false",
    "cpu",
    "[0.5, 0.9]",
]
WORDS = [
    *["true", "false", "null", "none", "~", "", " ", "-", "--", "auto", "cpu", "cuda", "tpu"],
    *["same", "next", "held-out", "encoder", "encoder,codebook", "decoder,,", "[]", "[", "]", "{}"],
    *["{", "{a: 1}", "[1, 2]", "[0.9, 0.99]", "[[1]]", "[1, x]", "a: b", "a=b", "*", "&a", "*a"],
    *["!!python/object/apply:os.getcwd []", "!!int x", "!!binary aGk=", "2001-01-01", "2001-99-99"],
    *["é×φ", "日本", "\U0001f4a5", "\u202e", "\x07", "a\nb", "a\tb", "'", '"', "\\", "%s", "{0}"],
    *["x" * 3000, "../..", "/etc/passwd", "/dev/null", "nowhere.yaml", "digits", "fashion-mnst"],
]
NUMBERS = [
    *[
        "0",
        "1",
        "2",
        "3",
        "4",
        "7",
        "8",
        "16",
        "-1",
        "-0",
        "0.0",
        "0.1",
        "0.5",
        "1.0",
        "1.5",
        "-0.1",
    ],
    *["1e-3", "1e3", "1e-400", "1e400", "nan", "inf", "-inf", ".nan", "0x10", "0b1", "1_000", "01"],
    *[str(2**31), str(2**32), str(2**63), str(2**64), "1" + "0" * 15, "9" * 400, "9" * 5000],
]
NEVER = ("args", "kwargs", "params", "network", "loss", "lower")  # no settings; "upper" is tried
PATHS = ["os.system", "subprocess.Popen", "builtins.eval", "torch.load", "mqvae.vqvae", "nowhere.X"]
PLAIN: list[Any] = [
    *[None, True, False, 0, 1, 2, -1, 7, 8, 2**40, 2**70, 0.5, -0.5, 1e300, float("nan")],
    *[float("inf"), "", "x", "é×", [], [1], [[]], ["x", None], {}, {"a": 1}, {"a": {"b": []}}],
    *[{"class_path": None}, {"class_path": 5}, {"class_path": []}, {"init_args": 3}],
    *[{"class_path": "os.system", "init_args": {"command": "touch ran"}}, {"init_args": {}}],
]


@dataclass
class Case:
    """What is typed after `mqvae train`, and the files beside it."""

    arguments: list[str]
    files: dict[str, bytes] = field(default_factory=dict)


def options() -> list[str]:
    """Every setting that has a name of its own."""
    known = [o for action in settings_parser()._actions for o in action.option_strings]
    out = ("--help", "-h", "--print_config", "--config", "--out", "--overwrite")
    return [o[2:] for o in known if not o.endswith(("+", ".help")) and o not in out]


def drawn(number: int) -> Case:
    """The case of a number, the same whenever it is asked for."""
    draw = random.Random(number)
    files: dict[str, bytes] = {}
    name = draw.choice(PRESETS)
    if draw.random() < 0.05:
        name = _misspelt(draw, name)
    arguments = [name]
    kind = draw.random()
    if kind < 0.45:
        files["case.yaml"] = _text(draw, _layer(draw), name)
        arguments = ["case.yaml"]
    elif kind < 0.55:
        files["over.yaml"] = _text(draw, _layer(draw), None)
        arguments += ["--config", "over.yaml"]
    if kind > 0.45 or draw.random() < 0.3:
        for _ in range(draw.choice([1, 1, 2, 3])):
            arguments += _option(draw)
    return Case(arguments, files)


def _option(draw: random.Random) -> list[str]:
    name = draw.choice(options())
    if draw.random() < 0.5:  # of a component
        slot = draw.choice(list(SLOTS))
        kind = draw.choice(_classes(slot))
        name = f"{slot}.{draw.choice(_arguments(kind))}"
        inner = components_in(kind)
        if name.rpartition(".")[2] in inner and draw.random() < 0.3:
            name += f".{draw.choice(['after', 'x', 'radius', 'optimizer_step', 'init_args.x'])}"
        before = [f"--{slot}", kind.__name__] if draw.random() < 0.9 else []
    else:
        before = []
    if draw.random() < 0.1:
        name = _misspelt(draw, name)
    value = _value(draw)
    typed = draw.random()
    if typed < 0.05:
        return [*before, f"--{name}"]
    return [*before, f"--{name}={value}"] if typed < 0.4 else [*before, f"--{name}", value]


def _value(draw: random.Random) -> str:
    pool = draw.choice([RIGHT, RIGHT, RIGHT, RIGHT, NUMBERS, NUMBERS, WORDS, PATHS, list(public())])
    value = draw.choice(pool)
    if draw.random() < 0.05:
        value = _misspelt(draw, value)
    if draw.random() < 0.05:
        value = "".join(draw.choice(string.printable) for _ in range(draw.randrange(12)))
    return value


def _layer(draw: random.Random) -> Any:
    """What a file says."""
    if draw.random() < 0.04:
        return draw.choice(PLAIN)
    layer: dict[Any, Any] = {}
    for _ in range(draw.choice([1, 1, 2, 3])):
        name = draw.choice(options())
        if draw.random() < 0.5:
            name = draw.choice(list(SLOTS))
        if draw.random() < 0.08:
            name = _misspelt(draw, name)
        value = _component(draw, name) if name in SLOTS else _plain(draw)
        level = layer
        *groups, last = name.split(".")
        for group in groups:
            below = level.setdefault(group, {})
            level = below if isinstance(below, dict) else {}
        level[last] = value
    if draw.random() < 0.05:
        layer[draw.choice(["base", "from", "out", "overwrite", "config", "", 5, None])] = _plain(
            draw
        )
    return layer


def _component(draw: random.Random, slot: str, depth: int = 0) -> Any:
    """A component, right or wrong in one of many ways."""
    if draw.random() < 0.15:
        return _plain(draw)
    kind = draw.choice(_classes(slot)) if slot in SLOTS else draw.choice(list(public().values()))
    if draw.random() < 0.08:
        kind = draw.choice(list(public().values()))
    path = draw.choice(
        [kind.__name__, f"mqvae.{kind.__name__}", f"{kind.__module__}.{kind.__name__}"]
    )
    if draw.random() < 0.05:
        path = draw.choice([*PATHS, _misspelt(draw, path)])
    arguments: dict[Any, Any] = {}
    for _ in range(draw.choice([0, 1, 1, 2])):
        name = draw.choice(_arguments(kind))
        if draw.random() < 0.08:
            name = _misspelt(draw, name)
        nested = name in components_in(kind) and depth < 3
        arguments[name] = _component(draw, "", depth + 1) if nested else _plain(draw)
    form = draw.random()
    if form < 0.2:
        return path
    if form < 0.5:
        return arguments
    spec: dict[str, Any] = {"class_path": path, "init_args": arguments}
    if draw.random() < 0.05:
        spec["more"] = 1
    return spec


def _plain(draw: random.Random) -> Any:
    if draw.random() < 0.3:
        return draw.choice(PLAIN)
    value = _value(draw)
    try:  # as YAML reads it
        found = yaml.safe_load(value)
        yaml.safe_dump(found)
    except Exception:
        return value
    return found


def _text(draw: random.Random, layer: Any, base: str | None) -> bytes:
    if isinstance(layer, dict) and base and draw.random() < 0.9:
        layer = {"base": base, **layer}
    text = yaml.safe_dump(layer, allow_unicode=draw.random() < 0.5, sort_keys=False).encode()
    if draw.random() < 0.08:  # broken somewhere
        at = draw.randrange(len(text))
        text = (
            text[:at]
            + draw.choice([b"", b"\xff", b"\x00", b"[", b"}", b"\t", b"&a *a"])
            + text[at:]
        )
    if draw.random() < 0.03:
        text = text[: draw.randrange(len(text) + 1)]
    return text


def _classes(slot: str) -> list[type]:
    base = SLOTS[slot][0]
    return [kind for kind in public().values() if issubclass(kind, base)]


def _arguments(kind: type) -> list[str]:
    try:
        parameters = signature(kind).parameters
    except ValueError:  # an exception, which nothing may be
        return ["x"]
    return [n for n in parameters if n not in NEVER] or ["x"]


def _misspelt(draw: random.Random, word: str) -> str:
    if not word:
        return "x"
    at = draw.randrange(len(word))
    return draw.choice(
        [
            word[:at] + word[at + 1 :],
            word[:at] + draw.choice("aeé_.-=") + word[at:],
            word[:at] + word[at : at + 2][::-1] + word[at + 2 :],
            word.upper(),
            word + ".x",
        ]
    )


@contextlib.contextmanager
def written(case: Case):  # type: ignore[no-untyped-def]
    """In a folder of its own, with the case's files; raises if anything is left there."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for name, content in case.files.items():
                Path(name).write_bytes(content)
            yield
            left = set(os.listdir()) - case.files.keys()
            if left:
                raise AssertionError(f"left behind: {sorted(left)}")
        finally:
            os.chdir(before)


def outcome(case: Case) -> tuple[str, str]:
    """Outcome of a case, a word and a text: accepted, refused, or a defect."""
    said = io.StringIO()
    try:
        with written(case), _in_time(), contextlib.redirect_stdout(said):
            try:
                settings, _, _ = from_arguments(case.arguments)
                stage = "parts"
                for _ in tried([_on_digits(settings)]):
                    pass
                return "accepted", ""
            except (MqvaeError, ExtraMissing, FileNotFoundError) as error:
                stage = "parser" if "stage" not in locals() else "parts"
                text = str(error)
                if "\n" in text.strip() and "YAML" not in text and stage == "parser":
                    return "defect", f"a message of several lines: {text}"
                if len(text) > LONGEST or not text.strip():
                    return "defect", f"a message of {len(text)} characters: {text[:300]}"
                if any(word in text for word in ("jsonargparse", "Namespace(", "Traceback")):
                    return "defect", f"another library's words: {text}"
                return f"refused by the {stage}", text
    except SystemExit:
        return "help", ""
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "defect", "".join(traceback.format_exception(error)[-12:])


def _on_digits(settings: Settings) -> Settings:
    """The same on images that are on every machine, in one process."""
    data = settings.data
    if isinstance(data, ImageData) and data.name in (
        "fashion-mnist",
        "mnist",
        "cifar10",
        "cifar100",
        "svhn",
    ):
        data = replace(data, name="digits", root=None)
    trainer = replace(settings.trainer, devices=1)
    return replace(settings, data=data, trainer=trainer)


class TooSlow(Exception):
    """A case that does not end."""


@contextlib.contextmanager
def _in_time():  # type: ignore[no-untyped-def]
    def stop(*_: object) -> None:
        raise TooSlow(f"more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def through_main(case: Case) -> str:
    """What is wrong with how the program refuses a case; empty if nothing is."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with written(case), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = program(["train", *case.arguments, "--out", "new"])
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    text = err.getvalue()
    if code != 2:
        return f"exit code {code}: {text}"
    if "Traceback" in text or text.count("\n") > 6 or not text.startswith("mqvae: error: "):
        return f"printed {text}"
    return ""


def limited(gib: int) -> None:
    """No more memory than that beside what is there."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + gib * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--through-main", type=int, default=40)
    parser.add_argument("--show", action="store_true", help="every message")
    options = parser.parse_args()
    torch.set_num_threads(1)
    mqvae.Tokenizer  # noqa: B018  # imports what is needed before memory is limited
    limited(GIB)
    began = time.perf_counter()
    counts: Counter[str] = Counter()
    refused = []
    for number in range(options.first, options.first + options.count):
        case = drawn(number)
        word, text = outcome(case)
        counts[word] += 1
        if word == "defect":
            print(f"\n{number}: {case}\n{text}", flush=True)
        elif options.show:
            print(f"{number} {word}: {case.arguments} {text}", flush=True)
        if word.startswith("refused"):
            refused.append(case)
    for case in refused[: options.through_main]:
        wrong = through_main(case)
        counts["through the program" if not wrong else "defect"] += 1
        if wrong:
            print(f"\n{case}\n{wrong}", flush=True)
    print(f"{options.count} cases in {time.perf_counter() - began:.0f} s: {dict(counts)}")
    sys.exit(bool(counts["defect"]))


if __name__ == "__main__":
    main()
