"""mqvae.runs: a checkpoint is whole or not there, and damage has a name."""

import contextlib
import errno
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mqvae import files
from mqvae.errors import MqvaeError
from mqvae.files import write_whole
from mqvae.runs import COLUMNS, Checkpoint, Run, optimizer_state, restore_optimizer

CONFIG = {"name": "a run", "steps": 3, "data": {"name": "digits"}}


class Killed(BaseException):
    """What no `except Exception` catches, as a kill."""


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "run", CONFIG)


def checkpoint(step):
    torch.manual_seed(step)
    model = {"w": torch.randn(3, 4), "codes": torch.randint(9, (5,))}
    training = {
        "lower.0.step": torch.tensor(float(step)),
        "half": torch.randn(4).bfloat16(),
        "random.cpu": torch.get_rng_state(),
    }
    state = {"step": step, "seconds": 0.1 + step / 3, "best": None, "warnings": ["ξ", "a"]}
    return Checkpoint(model, training, state)


def same(one, other):
    def equal(a, b):
        return a.keys() == b.keys() and all(
            a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a
        )

    return (
        equal(one.model, other.model)
        and equal(one.training, other.training)
        and one.state == other.state
    )


# -- making and opening a run ----------------------------------------------------------------------


def test_create_and_open(run):
    assert Run(run.folder).config == CONFIG
    assert list(Run(run.folder).config) == list(CONFIG)  # in the order it was written
    assert (run.folder / "checkpoints").is_dir() and (run.folder / "samples").is_dir()


def test_create_in_an_empty_folder(tmp_path):
    assert Run.create(tmp_path, CONFIG).config == CONFIG


def test_a_run_is_replaced_only_when_told(run):
    run.save("last", checkpoint(1))
    with pytest.raises(ValueError, match=r"exists already.*--overwrite.*--resume"):
        Run.create(run.folder, {"name": "another"})
    assert Run(run.folder).config == CONFIG
    assert same(run.load("last"), checkpoint(1))
    Run.create(run.folder, {"name": "another"}, overwrite=True)
    assert Run(run.folder).config == {"name": "another"}
    assert not list((run.folder / "checkpoints").iterdir())


@pytest.mark.parametrize("files", [["holiday.jpg"], ["config.yaml"], ["config.yaml", "a/b.txt"]])
def test_overwrite_leaves_alone_what_is_no_run(tmp_path, files):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match="is not a run, so --overwrite leaves it alone"):
        Run.create(tmp_path, CONFIG, overwrite=True)
    assert all((tmp_path / name).read_text() == "mine" for name in files)


def test_a_file_is_not_overwritten(tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ValueError):
            Run.create(path, CONFIG, overwrite=overwrite)
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "it has no config.yaml"),
        (b"a: [1", "config.yaml is not valid YAML"),
        (b"\x80\xff\x00", "config.yaml is not valid YAML"),
        (b"", "config.yaml holds no settings"),
        (b"- 1", "config.yaml holds no settings"),
    ],
)
def test_what_is_not_a_run(tmp_path, content, said):
    if content is not None:
        (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=said) as raised:
        Run(tmp_path)
    assert str(tmp_path) in str(raised.value)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="there is no such folder"):
        Run(tmp_path / "nowhere")


# -- checkpoints -----------------------------------------------------------------------------------


def test_checkpoints_come_back(run):
    for name in ("last", "best"):
        run.save(name, checkpoint(3))
        found = run.load(name)
        assert same(found, checkpoint(3))
        assert len(found.digest) == 64
    part = run.load("last", training=False)
    assert part.training == {}
    assert same(part, Checkpoint(checkpoint(3).model, {}, checkpoint(3).state))
    run.save("last", checkpoint(4))
    assert same(run.load("last"), checkpoint(4))
    assert run.load("last").digest != run.load("best").digest
    there = sorted(p.name for p in (run.folder / "checkpoints").iterdir())
    assert there == ["best", "last", "last.previous"]


def test_whoever_may_read_the_config_may_read_the_weights(run):
    run.save("last", checkpoint(0))
    mode = stat.S_IMODE((run.folder / "config.yaml").stat().st_mode)
    for path in (run.folder / "checkpoints" / "last").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_no_checkpoint(run):
    with pytest.raises(ValueError, match="has no checkpoint 'best'"):
        run.load("best")


STAGES = [
    (Path, "mkdir"),
    (Path, "write_bytes"),
    (Path, "write_text"),
    (Path, "rename"),
    (os, "replace"),
    (os, "fsync"),
    (shutil, "rmtree"),
]


def killing_at(moment, *, before):
    """Patches by which the operation number `moment` on the disk is the last, done or half done."""
    counter = iter(range(10**6))

    def wrapped(name, original):
        def operation(*args, **kwargs):
            if next(counter) != moment:
                return original(*args, **kwargs)
            if name.startswith("write") and not before:
                original(args[0], args[1][: len(args[1]) // 2])
            elif not before:
                original(*args, **kwargs)
            raise Killed

        return operation

    return [(owner, name, wrapped(name, getattr(owner, name))) for owner, name in STAGES]


@pytest.mark.parametrize("before", [True, False], ids=["before", "amid-or-after"])
def test_killed_at_any_moment_a_checkpoint_is_whole(run, before, monkeypatch):
    run.save("last", checkpoint(1))
    whole, moments = checkpoint(1), 0
    while True:
        newer = checkpoint(moments + 2)
        with monkeypatch.context() as patch:
            for owner, name, operation in killing_at(moments, before=before):
                patch.setattr(owner, name, operation)
            try:
                run.save("last", newer)
                break
            except Killed:
                moments += 1
        # What the next process finds is the old one or the new one, to the bit.
        found = Run(run.folder).load("last")
        assert same(found, whole) or same(found, newer), f"moment {moments}"
        whole = newer if same(found, newer) else whole
    assert moments >= 10
    assert same(run.load("last"), newer)
    there = sorted(p.name for p in (run.folder / "checkpoints").iterdir())
    assert there == ["last", "last.previous"]


def flip(path, where=0.5):
    content = bytearray(path.read_bytes())
    content[int(where * (len(content) - 1))] ^= 1
    path.write_bytes(content)


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change_step(path):
    state = json.loads(path.read_text())
    state["step"] += 1
    path.write_text(json.dumps(state))


@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        ("model.safetensors", flip, "model.safetensors is not what was written"),
        ("model.safetensors", lambda p: flip(p, 0), "model.safetensors is not"),
        ("model.safetensors", lambda p: flip(p, 1), "model.safetensors is not"),
        ("model.safetensors", halve, "model.safetensors is not what was written"),
        ("model.safetensors", lambda p: p.write_bytes(b""), "model.safetensors is not"),
        ("model.safetensors", Path.unlink, "model.safetensors is missing"),
        ("training.safetensors", flip, "training.safetensors is not what was written"),
        ("training.safetensors", halve, "training.safetensors is not what was written"),
        ("training.safetensors", Path.unlink, "training.safetensors is missing"),
        ("state.json", Path.unlink, "state.json is missing"),
        ("state.json", halve, ""),
        ("state.json", change_step, "state.json is not what was written"),
        ("state.json", lambda p: p.write_text("[]"), ""),
        ("state.json", lambda p: p.write_text("{}"), ""),
    ],
)
@pytest.mark.parametrize("name", ["last", "best"])
def test_damage_is_named(run, name, file, damage, said, capsys):
    for each in ("last", "best"):
        run.save(each, checkpoint(2))
    damage(run.folder / "checkpoints" / name / file)
    with pytest.raises(ValueError) as raised:
        run.load(name)
    text = str(raised.value)
    assert f"the checkpoint {run.folder / 'checkpoints' / name} is damaged" in text
    assert said in text
    other = {"last": "best", "best": "last"}[name]
    assert f"--checkpoint {other}" in text
    assert same(run.load(other), checkpoint(2))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        ("model.safetensors", flip, "model.safetensors is not what was written"),
        ("training.safetensors", halve, "training.safetensors is not what was written"),
        ("state.json", change_step, "state.json is not what was written"),
        ("state.json", Path.unlink, "state.json is missing"),
    ],
)
def test_of_a_damaged_checkpoint_the_one_before_is_taken(run, file, damage, said, capsys):
    for step in (1, 2, 3):
        run.save("last", checkpoint(step))
    damage(run.folder / "checkpoints" / "last" / file)
    for training in (True, False):
        found = Run(run.folder).load("last", training=training)
        weights_are_whole = file == "training.safetensors" and not training
        assert found.state == checkpoint(3 if weights_are_whole else 2).state
        warned = capsys.readouterr().err
        if weights_are_whole:
            assert warned == ""
        else:
            assert warned.startswith("mqvae: warning: the checkpoint ")
            assert f"is damaged ({said}): the one before it is taken, of step 2." in warned
    # It is said once; the next one takes the damaged one's place, the whole one stays until then.
    for _ in range(2):
        assert same(run.load("last"), checkpoint(2))
    assert capsys.readouterr().err.count("is damaged") == 1
    run.save("last", checkpoint(4))
    assert same(run.load("last"), checkpoint(4))
    flip(run.folder / "checkpoints" / "last" / "state.json")
    assert same(run.load("last"), checkpoint(2))
    assert "is damaged" in capsys.readouterr().err


def test_killed_while_a_damaged_checkpoint_is_replaced(run, monkeypatch):
    moments = 0
    while True:
        for step in (1, 2, 3):
            run.save("last", checkpoint(step))
        flip(run.folder / "checkpoints" / "last" / "model.safetensors")
        opened = Run(run.folder)
        assert same(opened.load("last"), checkpoint(2))
        with monkeypatch.context() as patch:
            for owner, name, operation in killing_at(moments, before=False):
                patch.setattr(owner, name, operation)
            try:
                opened.save("last", checkpoint(4))
                break
            except Killed:
                moments += 1
        found = Run(run.folder).load("last")
        assert same(found, checkpoint(2)) or same(found, checkpoint(4)), f"moment {moments}"
    assert moments >= 8


def test_any_byte_changed_is_noticed(run, capsys):
    """Every byte of every file, its lowest and its highest bit."""
    saved = [
        Checkpoint({"w": torch.full((2,), i)}, {"m": torch.ones(2)}, {"step": i, "ξ": [0.1, None]})
        for i in (1, 2)
    ]
    for each in saved:
        run.save("last", each)
    count = 0
    for path in (run.folder / "checkpoints" / "last").iterdir():
        whole = path.read_bytes()
        for place in range(len(whole)):
            for bit in (1, 128):
                path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
                found = Run(run.folder).load("last")
                assert same(found, saved[0]), (path.name, place)
                assert "is damaged" in capsys.readouterr().err
                count += 1
        path.write_bytes(whole)
    assert same(run.load("last"), saved[1])
    assert count > 900


def test_read_while_it_is_replaced(run, monkeypatch, capsys):
    """Whoever reads finds a whole one, and no damage, whenever the next one is written."""
    newest = [2]
    for step in (1, 2):
        run.save("last", checkpoint(step))
    read = Path.read_bytes
    for moment in range(6):
        count = iter(range(10**6))

        def replacing(path, count=count, moment=moment):
            if path.parent.parent.name == "checkpoints" and next(count) == moment:
                with monkeypatch.context() as patch:
                    patch.setattr(Path, "read_bytes", read)
                    for _ in range(2):
                        newest.append(newest[-1] + 1)
                        Run(run.folder).save("last", checkpoint(newest[-1]))
            return read(path)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_bytes", replacing)
            found = Run(run.folder).load("last")
        assert same(found, checkpoint(found.state["step"]))
        assert found.state["step"] in newest[-3:]
        assert capsys.readouterr().err == ""
    assert len(newest) > 3


def test_damage_without_another_checkpoint(run):
    run.save("last", checkpoint(2))
    flip(run.folder / "checkpoints" / "last" / "model.safetensors")
    with pytest.raises(ValueError, match="damaged") as raised:
        run.load()
    assert "--overwrite" in str(raised.value)
    assert "--checkpoint" not in str(raised.value)


def test_weights_load_where_only_training_is_damaged(run):
    run.save("last", checkpoint(2))
    flip(run.folder / "checkpoints" / "last" / "training.safetensors")
    found = run.load("last", training=False)
    assert torch.equal(found.model["w"], checkpoint(2).model["w"])


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["fsync", "replace"])
def test_a_text_file_is_whole_or_not_there(tmp_path, operation, monkeypatch):
    path = tmp_path / "summary.json"
    write_whole(path, "old")

    def killed(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(files.os, operation, killed)
        with pytest.raises(Killed):
            write_whole(path, "new")
    assert path.read_text() == "old"
    write_whole(path, "new: ξ")
    assert path.read_text(encoding="utf-8") == "new: ξ"
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def lines(run):
    return (run.folder / "metrics.csv").read_text().splitlines()


def test_metrics(run):
    run.start_metrics(after_step=0)
    for step in range(1, 6):
        run.log({"step": step, "seconds": step / 3, "task": 1e-9 * step, "usage": 1.0})
    assert lines(run)[0] == ",".join(COLUMNS)
    assert lines(run)[3] == "3,1,,3e-09,,,,,1,,,,,,"
    before = lines(run)
    # A row that a kill cut short goes, one that was after the checkpoint too.
    for torn in ("", "6", "1", "6,0.3,", "2,0.4,1e-"):
        with (run.folder / "metrics.csv").open("a") as file:
            file.write(torn)
        run.start_metrics(after_step=5)
        assert lines(run) == before, torn
    run.start_metrics(after_step=3)
    assert lines(run) == before[:4]
    run.log({"step": 4, "task": None})
    assert lines(run)[4] == "4" + "," * (len(COLUMNS) - 1)
    run.start_metrics(after_step=0)
    assert lines(run) == before[:1]


def test_an_optimizer_comes_back_to_the_bit():
    def made():
        torch.manual_seed(3)
        layer = nn.Linear(3, 2)
        return layer, torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.01)

    def train(layer, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            layer(torch.rand(5, 3, generator=generator)).square().mean().backward()
            optimizer.step()

    generator = torch.Generator().manual_seed(0)
    layer, optimizer = made()
    train(layer, optimizer, 2)
    optimizer.param_groups[0]["lr"] = 0.05
    tensors, rest = optimizer_state("lower", optimizer)
    tensors, rest = {k: v.clone() for k, v in tensors.items()}, json.loads(json.dumps(rest))
    assert "params" not in rest["groups"][0]
    weights, state = {k: v.clone() for k, v in layer.state_dict().items()}, generator.get_state()
    train(layer, optimizer, 3)

    again, restored = made()
    again.load_state_dict(weights)
    generator.set_state(state)
    other = {"upper.0.exp_avg": torch.zeros(1), "random.cpu": torch.zeros(1)}
    restore_optimizer("lower", restored, {**tensors, **other}, rest)
    assert restored.param_groups[0]["lr"] == 0.05
    train(again, restored, 3)
    assert torch.equal(again.weight, layer.weight)
    assert torch.equal(again.bias, layer.bias)


@pytest.mark.parametrize(
    "kind",
    [
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.Adagrad(p, lr=0.1),
    ],
    ids=["sgd", "momentum", "adagrad"],
)
def test_optimizers_that_remember_other_things_go_on_as_well(kind):
    layers = [nn.Linear(3, 2) for _ in range(2)]
    optimizers = [kind(layer.parameters()) for layer in layers]

    def train(of):
        for step in range(3):
            optimizers[of].zero_grad()
            layers[of](torch.full((1, 3), step + 1.0)).square().sum().mul(0.01).backward()
            optimizers[of].step()

    train(0)
    tensors, rest = optimizer_state("lower", optimizers[0])
    tensors, rest = {k: v.clone() for k, v in tensors.items()}, json.loads(json.dumps(rest))
    layers[1].load_state_dict(layers[0].state_dict())
    restore_optimizer("lower", optimizers[1], tensors, rest)
    for of in (0, 1):
        train(of)
    assert torch.equal(layers[0].weight, layers[1].weight)


def test_an_optimizer_that_remembers_what_no_checkpoint_holds():
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    optimizer.state[layer.weight]["note"] = "hello"
    with pytest.raises(ValueError, match="SGD remembers a str, 'note'"):
        optimizer_state("lower", optimizer)


# -- whether there is something to resume ----------------------------------------------------------


def test_resumable(tmp_path, run):
    assert not Run.resumable(tmp_path / "nowhere")
    assert not Run.resumable(tmp_path)
    assert not Run.resumable(run.folder)
    run.save("last", checkpoint(1))
    assert Run.resumable(run.folder)
    last = run.folder / "checkpoints" / "last"
    last.rename(last.with_name("last.previous"))  # a kill between two renamings
    assert Run.resumable(run.folder)
    assert same(run.load("last"), checkpoint(1))
    (run.folder / "config.yaml").unlink()
    assert not Run.resumable(run.folder)


def test_what_says_that_a_folder_is_in_use_offers_what_works(run):
    with pytest.raises(ValueError) as raised:
        Run.require_free(run.folder)
    assert "--overwrite" in str(raised.value) and "--resume" not in str(raised.value)
    run.save("last", checkpoint(1))
    with pytest.raises(ValueError, match=r"--overwrite.*--resume"):
        Run.require_free(run.folder)


@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_while_a_run_is_made_it_can_be_made_again(tmp_path, monkeypatch, overwrite):
    moments = 0
    while True:
        folder = tmp_path / f"run{moments}"
        if overwrite:
            old = Run.create(folder, CONFIG)
            old.save("last", checkpoint(1))
            old.start_metrics(after_step=0)
            (folder / "samples" / "a.png").write_text("picture")
            old.unlock()
        new = {"name": "another"}
        with monkeypatch.context() as patch:
            for owner, name, operation in killing_at(moments, before=False):
                patch.setattr(owner, name, operation)
            try:
                Run.create(folder, new, overwrite=overwrite)
                break
            except Killed:
                moments += 1
        assert Run.create(folder, new, overwrite=True).config == new
        assert not Run.resumable(folder)
        assert sorted(p.name for p in folder.iterdir() if p.name[0] != ".") == [
            "checkpoints",
            "config.yaml",
            "samples",
        ]
    assert moments >= 4


# -- one trainer at a time -------------------------------------------------------------------------

# What `Run.lock` does, without the imports of a training.
HOLDING = """
import sys
from pathlib import Path
from mqvae.runs.lock import lock
held = lock(Path(sys.argv[1]))
print("locked", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def another_process_trains(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "locked\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_run_in_training_is_not_trained_nor_replaced(run):
    run.save("last", checkpoint(1))
    run.unlock()
    with another_process_trains(run.folder) as process:
        said = rf"{run.folder} is being trained already, by process {process.pid} on "
        for attempt in (
            run.lock,
            lambda: Run.create(run.folder, CONFIG, overwrite=True),
            lambda: Run.require_free(run.folder, overwrite=True),
        ):
            with pytest.raises(MqvaeError, match=said):
                attempt()
        assert same(run.load(), checkpoint(1))
        process.kill()  # whatever ends it ends the lock
        process.wait()
        run.lock()
    run.unlock()
    assert not (run.folder / ".lock").exists()


def test_the_lock_is_one_for_all_of_a_process(run):
    again = Run(run.folder)
    again.lock()
    again.unlock()
    run.unlock()
    run.lock()


def test_a_file_system_without_locks(run, monkeypatch):
    from mqvae.runs import lock as locking

    run.unlock()

    def refuses(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locking.fcntl, "flock", refuses)
    run.lock()
    monkeypatch.setattr(locking, "fcntl", None)
    run.unlock()
    run.lock()


# -- disks that are full or may not be written -----------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_disk_that_takes_no_more(run, monkeypatch, number):
    for step in (1, 2):
        run.save("last", checkpoint(step))
    moments = 0
    while True:
        newer = checkpoint(moments + 3)
        with monkeypatch.context() as patch:
            for owner, name, operation in failing_at(moments, number):
                patch.setattr(owner, name, operation)
            try:
                run.save("last", newer)
                break
            except MqvaeError as error:
                said = str(error)
                moments += 1
        assert os.strerror(number) in said and "--resume" in said
        assert same(Run(run.folder).load("last"), checkpoint(2)), f"moment {moments}"
        assert not (run.folder / "checkpoints" / "last.partial").exists()
    assert moments >= 6
    assert same(run.load("last"), newer)


def failing_at(moment, number):
    """Patches by which the operation number `moment` on the disk, and all after it, are refused."""
    counter = iter(range(10**6))

    def wrapped(original):
        def operation(*args, **kwargs):
            if next(counter) >= moment:
                raise OSError(number, os.strerror(number))
            return original(*args, **kwargs)

        return operation

    stages = [stage for stage in STAGES if stage[1] not in ("rename", "rmtree")]
    return [(owner, name, wrapped(getattr(owner, name))) for owner, name in stages]


def test_a_file_that_finds_no_room_leaves_none_of_it(tmp_path, monkeypatch):
    write_whole(tmp_path / "summary.json", "old")

    def full(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*summary\.json'"):
        write_whole(tmp_path / "summary.json", "newer")
    assert (tmp_path / "summary.json").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]
