"""Settings that would run something, read something or never end, in every place they are read.

    python -m campaigns.hostile_settings

Each payload is put into a preset, a `base`, a file of --config, a run's config.yaml and a shared
tokenizer's config.json, and the commands that read these are called. All must be refused by a
MqvaeError, exit code 2 and a few lines; nothing may be left behind or imported.
"""

import contextlib
import io
import json
import os
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

import mqvae
from mqvae.cli import main as program
from mqvae.errors import MqvaeError
from mqvae.files import parsed_yaml

SECONDS = 300  # a command may take

RUN_IT = (
    "update: {class_path: %s, init_args: {command: touch ran, args: [touch, ran], shell: true}}"
)
TAGS = (
    "object/apply:os.system ['touch ran']",
    "object/new:subprocess.Popen [[touch, ran]]",
    'object/apply:builtins.eval [\'open("ran", "w")\']',
    "object:evil.Rule {}",
    "module:evil",
    "name:evil.Rule",
)
CLASSES = (
    *("os.system", "os.popen", "subprocess.Popen", "subprocess.run", "builtins.exec"),
    *("builtins.eval", "builtins.open", "pathlib.Path", "shutil.rmtree", "torch.load"),
    *("torch.hub.load", "torch.utils.cpp_extension.load_inline", "importlib.import_module"),
    *("evil.Rule", "pack.Rule", "pack.evil.Rule", "mqvae.__main__.X", "mqvae.cli.os.system"),
    *("mqvae.cli.main", "mqvae.Run.create", "torch.optim.os.system", "functools.partial"),
)
PAYLOADS = {
    **{f"tag {tag}": f"update: !!python/{tag}" for tag in TAGS},
    **{f"class {path}": RUN_IT % path for path in CLASSES},
    "a class inside": "update: {look_ahead: {class_path: evil.Rule}}",
    "a class as an optimizer": "optimizer: {codebook: evil.Rule}",
    "a class in a list": "optimizer: {network: {betas: [{class_path: evil.Rule}, 0.9]}}",
    "a file as a component": "quantizer: /dev/zero",
    "a file inside": "quantizer: {class_path: ResidualQuantizer, init_args: {stages: /dev/zero}}",
    "billion laughs": "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    + "".join(
        f"{b}: &{b} [{', '.join(9 * [f'*{a}'])}]\n"
        for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ),
    "a circle": "update: &a {class_path: *a}",
    "depth": "freeze: " + "[" * 20_000,
    "a long key": f"{'k' * 2_000_000}: 1",
    "a long value": f"update: {'k' * 2_000_000}",
    "a base without an end": "base: /dev/zero.yaml",
    "a base of itself": "base: case.yaml",
}
COMMANDS = (
    ["train", "case.yaml", "--out", "new"],
    ["train", "over.yaml", "--out", "new"],
    ["train", "digits-tiny", "--config", "case.yaml", "--out", "new"],
    ["train", "--resume", "run"],
    ["evaluate", "run"],
    ["encode", "run", "test", "--out", "codes.npz"],
    ["diagnose", "run"],
    ["prior", "run"],
    ["export", "run"],
)
EVIL = "open(__file__ + '.ran', 'w')\nimport mqvae\nclass Rule(mqvae.Joint): pass\n"


class TooSlow(Exception):
    """A command that does not end."""


def stop(*_: object) -> None:
    raise TooSlow(f"more than {SECONDS} seconds")


def refusal(command: list[str]) -> str:
    """What is wrong with how a command ends; empty if it is refused as it should be."""
    said = io.StringIO()
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = program(command)
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    text = said.getvalue()
    right = code == 2 and "Traceback" not in text and text.count("\n") <= 6 and len(text) < 2000
    return "" if right else f"exit code {code}: {text[:2000]}"


def main() -> None:
    for module in (mqvae.training, mqvae.diagnosis, mqvae.prior, mqvae.Tokenizer):
        assert module  # imported before the clock runs
    signal.signal(signal.SIGALRM, stop)
    counts: Counter[str] = Counter()
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        sys.path.insert(0, folder)
        Path("pack").mkdir()
        for name in ("evil.py", "pack/__init__.py", "pack/evil.py"):
            Path(name).write_text(EVIL)
        Path("run", "checkpoints").mkdir(parents=True)
        Path("shared").mkdir()
        Path("over.yaml").write_text("base: case.yaml\n")
        files = {Path(p) for p in ("case.yaml", "run/config.yaml", "shared/config.json")}
        there = {*Path().rglob("*"), *files}
        for name, payload in PAYLOADS.items():
            Path("case.yaml").write_text(payload)
            Path("run/config.yaml").write_text(payload)
            for command in COMMANDS:
                wrong = refusal(command)
                counts["wrong" if wrong else "refused"] += 1
                if wrong:
                    print(f"\n{name}: {' '.join(command)}: {wrong}", flush=True)
            with contextlib.suppress(ValueError):  # what is no YAML of settings is none of JSON
                content = {"mqvae": "0", "step": 1, "settings": parsed_yaml(payload)}
                Path("shared/config.json").write_text(json.dumps(content))
                try:
                    mqvae.Tokenizer.from_pretrained("shared")
                    counts["wrong"] += 1
                    print(f"\n{name}: from_pretrained takes it", flush=True)
                except MqvaeError:
                    counts["refused"] += 1
            left = set(Path().rglob("*")) - there
            if left or {"evil", "pack"} & sys.modules.keys():
                counts["ran"] += 1
                print(f"\n{name}: left {left}", flush=True)
        os.chdir(before)
    print(f"{len(PAYLOADS)} payloads: {dict(counts)}")
    sys.exit(bool(counts["wrong"] or counts["ran"]))


if __name__ == "__main__":
    main()
