"""mqvae.data: what comes out for names and folders, and what is said when it cannot."""

import ast
import gzip
import hashlib
import os
import pickle
import shutil
import statistics
import struct
import sys
import tarfile
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mqvae import data
from mqvae.data import celeba_hq, conform, imagenet, mnist
from mqvae.data import images as images_module
from mqvae.data.batches import Batches, in_order
from mqvae.data.folder import say
from mqvae.data.images import InMemory

DEBIAN = mnist.DEBIAN_FASHION_MNIST
needs_fashion = pytest.mark.skipif(
    not DEBIAN.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed"
)
TESTS_OF_50 = ("18.png", "29.png", "47.png")
NOWHERE = "http://127.0.0.1:9/"  # the discard port: refused at once


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache of the test's own, and no way to the network."""
    from torchvision import datasets

    folder = tmp_path / "cache"
    monkeypatch.setenv("MQVAE_CACHE", str(folder))
    monkeypatch.setattr(datasets.MNIST, "mirrors", [NOWHERE])
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [NOWHERE])
    for kind in (datasets.CIFAR10, datasets.CIFAR100):
        monkeypatch.setattr(kind, "url", NOWHERE)
    lists = {split: (NOWHERE, *rest) for split, (_, *rest) in datasets.SVHN.split_list.items()}
    monkeypatch.setattr(datasets.SVHN, "split_list", lists)
    return folder


@pytest.fixture
def mirror(tmp_path):
    """A web server on this machine: the folder it serves and its address."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    folder = tmp_path / "mirror"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def made(count=50, channels=1, side=4, seed=0):
    """Images whose labels are their own numbers, so that a batch tells what it took."""
    rng = np.random.default_rng(seed)
    pixels = torch.from_numpy(rng.integers(0, 256, (count, channels, side, side), dtype=np.uint8))
    return InMemory("made", "train", pixels, torch.arange(count), "made by the test")


def values(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def says(error, *parts):
    """The message names each of these."""
    missing = [str(part) for part in parts if str(part) not in str(error.value)]
    assert not missing, f"{missing} not in: {error.value}"


# ---- Images ----


def test_images_know_shape_and_length_and_give_what_is_asked():
    images = made(count=7, channels=3, side=5)
    assert (len(images), images.shape) == (7, (3, 5, 5))
    pixels, labels = images.take([6, 0, 6])
    assert labels.tolist() == [6, 0, 6]
    assert torch.equal(pixels, images.pixels[torch.tensor([6, 0, 6])])


@pytest.mark.parametrize(
    ("pixels", "labels", "names", "word"),
    [
        (torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64), (), "pixels"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), (), "pixels"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2), (), "labels"),
        (
            torch.zeros(2, 1, 4, 4, dtype=torch.uint8),
            torch.zeros(3, dtype=torch.int64),
            (),
            "labels",
        ),
        (
            torch.zeros(2, 1, 4, 4, dtype=torch.uint8),
            torch.zeros(2, dtype=torch.int64),
            ("a.png",),
            "names",
        ),
    ],
)
def test_images_refuse_what_does_not_fit(pixels, labels, names, word):
    with pytest.raises(ValueError, match=f"{word} do not fit: expected"):
        InMemory("x", "train", pixels, labels, "made", names)


# ---- Fashion-MNIST and MNIST ----


@needs_fashion
def test_fashion_mnist_is_the_real_one():
    train = data.load("fashion-mnist", "train", download=False)
    assert (len(train), train.shape, train.split) == (60_000, (1, 28, 28), "train")
    assert train.labels.bincount().tolist() == [6_000] * 10
    assert train.labels[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    # The mean that is published with the data set: 0.2860.
    assert train.pixels.sum(dtype=torch.int64).item() / train.pixels.numel() / 255 == pytest.approx(
        0.2860, abs=5e-5
    )
    assert str(DEBIAN) in train.source and "dataset-fashion-mnist" in train.source
    test = data.load("fashion-mnist", "test", root=DEBIAN)
    assert (len(test), test.labels.bincount().tolist()) == (10_000, [1_000] * 10)
    assert test.labels[:5].tolist() == [9, 2, 1, 1, 6]


def copy_test_split(folder, unpacked=False):
    folder.mkdir(parents=True)
    for part in ("images-idx3", "labels-idx1"):
        name = f"t10k-{part}-ubyte"
        if unpacked:
            (folder / name).write_bytes(gzip.decompress((DEBIAN / f"{name}.gz").read_bytes()))
        else:
            shutil.copy(DEBIAN / f"{name}.gz", folder)
    return folder


@needs_fashion
def test_root_comes_first_then_cache_then_debian(tmp_path, cache):
    theirs = copy_test_split(tmp_path / "root")
    assert str(DEBIAN) in data.load("fashion-mnist", "test").source
    own = copy_test_split(cache / "fashion-mnist" / "FashionMNIST" / "raw", unpacked=True)
    from_cache = data.load("fashion-mnist", "test")
    assert from_cache.source == f"files in {own.parents[1]}"
    assert data.load("fashion-mnist", "test", root=str(theirs)).source == f"files in {theirs}"
    assert torch.equal(from_cache.pixels, data.load("fashion-mnist", "test", root=DEBIAN).pixels)


@needs_fashion
def test_a_cache_that_lacks_a_file_is_passed_over(cache):
    folder = copy_test_split(cache / "fashion-mnist")
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    assert str(DEBIAN) in data.load("fashion-mnist", "test").source


@needs_fashion
def test_root_without_the_files_is_an_error_and_no_fallback(tmp_path):
    folder = copy_test_split(tmp_path / "root")
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError) as error:
        data.load("fashion-mnist", "test", root=folder)
    assert not isinstance(error.value, data.DataNotFound)  # or the caller would take the digits
    says(error, folder, "t10k-labels-idx1-ubyte.gz is missing", "apt-get install")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        data.load("fashion-mnist", "test", root=tmp_path / "elsewhere")


def cut_gzip(path):
    path.write_bytes(path.read_bytes()[:-1000])


def garble_gzip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def wrong_crc(path):
    content = bytearray(path.read_bytes())
    content[-8] ^= 0xFF
    path.write_bytes(content)


def repack(change):
    def damage(path):
        content = bytearray(gzip.decompress(path.read_bytes()))
        path.write_bytes(gzip.compress(bytes(change(content)), compresslevel=1))

    return damage


def flip_a_bit(content):
    content[-1] ^= 1
    return content


@needs_fashion
@pytest.mark.parametrize(
    ("part", "damage", "words"),
    [
        ("labels-idx1", cut_gzip, ("cannot be read", "10,008 bytes")),
        ("labels-idx1", garble_gzip, ("10,008 bytes",)),
        ("labels-idx1", wrong_crc, ("cannot be read", "CRC")),
        ("labels-idx1", lambda path: path.write_bytes(b"no gzip"), ("cannot be read",)),
        ("labels-idx1", lambda path: path.write_bytes(b""), ("is cut short", "got 0")),
        ("labels-idx1", repack(lambda c: c[:-1]), ("is cut short", "10,008", "got 10,007")),
        ("labels-idx1", repack(lambda c: c[:6]), ("is cut short", "got 6")),
        ("labels-idx1", repack(lambda c: c + b"0"), ("is too long", "10,008")),
        ("labels-idx1", repack(flip_a_bit), ("was altered", "SHA-256 0402a96d92fd")),
        ("labels-idx1", repack(lambda c: b"\0\0\x08\x03" + c[4:]), ("2049, got 2051",)),
        ("images-idx3", repack(flip_a_bit), ("was altered", "SHA-256 5b4141f0afba")),
        (
            "images-idx3",
            lambda path: path.write_bytes(gzip.compress(struct.pack(">4I", 2051, 9, 28, 28))),
            ("has other dimensions", "10000 × 28 × 28, got 9 × 28 × 28"),
        ),
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(cache, part, damage, words):
    folder = copy_test_split(cache / "fashion-mnist")
    path = folder / f"t10k-{part}-ubyte.gz"
    damage(path)
    with pytest.raises(ValueError) as error:
        data.load("fashion-mnist", "test")
    says(error, path, "expected", "got", "Delete it and run again", "apt-get install", *words)


@needs_fashion
def test_what_to_do_depends_on_where_the_damaged_file_is(tmp_path, monkeypatch):
    folder = copy_test_split(tmp_path / "files", unpacked=True)
    (folder / "t10k-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01")
    with pytest.raises(ValueError, match=r"is cut short: .* Put the original file there"):
        data.load("fashion-mnist", "test", root=folder)
    monkeypatch.setattr(mnist, "DEBIAN_FASHION_MNIST", folder)
    with pytest.raises(ValueError, match="apt-get install --reinstall dataset-fashion-mnist"):
        data.load("fashion-mnist", "test")


def test_when_nothing_answers_all_places_are_listed(tmp_path, cache, monkeypatch):
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setattr(mnist, "DEBIAN_FASHION_MNIST", empty)
    start = time.monotonic()
    with pytest.raises(data.DataNotFound) as error:
        data.load("fashion-mnist", "train")
    assert time.monotonic() - start < 5
    assert isinstance(error.value, FileNotFoundError)
    says(error, cache / "fashion-mnist", "no such folder", f"{empty}: train-images-idx3-ubyte.gz")
    says(error, "download to", "refused", "apt-get install dataset-fashion-mnist")
    assert list((cache / "fashion-mnist").iterdir()) == []  # nothing half done stays
    with pytest.raises(data.DataNotFound, match="download is off"):
        data.load("fashion-mnist", "train", download=False)


@needs_fashion
def test_download_fills_the_cache(tmp_path, cache, mirror, monkeypatch, capsys):
    """torchvision checks the MD5 of the packed originals, so this also proves our digests."""
    from torchvision import datasets

    # Debian's files are the originals less the name and time in the header of gzip.
    folder, address = mirror
    for name, stamp in (
        ("train-images-idx3-ubyte", 1504176606),
        ("train-labels-idx1-ubyte", 1504176606),
        ("t10k-images-idx3-ubyte", 1504176627),
        ("t10k-labels-idx1-ubyte", 1504176627),
    ):
        packed = (DEBIAN / f"{name}.gz").read_bytes()
        header = b"\x1f\x8b\x08\x08" + struct.pack("<I", stamp) + b"\0\x03" + name.encode() + b"\0"
        (folder / f"{name}.gz").write_bytes(header + packed[10:])
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [address])
    monkeypatch.setattr(mnist, "DEBIAN_FASHION_MNIST", tmp_path / "none")
    train = data.load("fashion-mnist", "train")
    assert train.source == f"files in {cache / 'fashion-mnist'}"
    assert capsys.readouterr().out == ""
    assert [p.name for p in (cache / "fashion-mnist").iterdir()] == ["FashionMNIST"]
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [NOWHERE])
    assert len(data.load("fashion-mnist", "test")) == 10_000
    assert len(train) == 60_000


def test_a_folder_called_as_a_data_set_is_pointed_out(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    say.cache_clear()
    data.load("digits", "test")
    assert capsys.readouterr().err == ""
    (tmp_path / "digits").mkdir()
    data.load("digits", "test")
    assert "digits is the data set by that name: the folder is digits/" in capsys.readouterr().err


def test_cache_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("MQVAE_CACHE", "/own")
    assert data.cache_folder("digits") == Path("/own/digits")
    monkeypatch.delenv("MQVAE_CACHE")
    assert data.cache_folder("digits") == Path("/xdg/mqvae/digits")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert data.cache_folder("digits") == Path("/home/someone/.cache/mqvae/digits")


def write_idx(path, array):
    header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
    path.write_bytes(header + array.tobytes())


def test_mnist_reads_the_same_format_and_checks_counts_and_labels(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels, labels = values((10_000, 28, 28)), values(10_000, seed=1) % 10
    write_idx(raw / "t10k-images-idx3-ubyte", pixels)
    write_idx(raw / "t10k-labels-idx1-ubyte", labels)
    images = data.load("mnist", "test", root=tmp_path)
    assert torch.equal(images.pixels[:, 0], torch.from_numpy(pixels))
    assert torch.equal(images.labels, torch.from_numpy(labels.astype(np.int64)))

    labels[77] = 10
    write_idx(raw / "t10k-labels-idx1-ubyte", labels)
    with pytest.raises(ValueError, match=r"labels-idx1-ubyte was altered.*0 to 9, got 10"):
        data.load("mnist", "test", root=tmp_path)
    write_idx(raw / "train-images-idx3-ubyte", pixels[:5])
    with pytest.raises(ValueError, match="60000 × 28 × 28, got 5 × 28 × 28"):
        data.load("mnist", "train", root=tmp_path)
    with pytest.raises(data.DataNotFound, match=r"train-images-idx3-ubyte\.gz"):
        data.load("mnist", "train")


def test_fashion_mnist_reads_the_packed_format_and_takes_no_other_images(tmp_path, monkeypatch):
    pixels, labels = values((10_000, 28, 28)), values(10_000, seed=1) % 10
    for part, array in (("images-idx3", pixels), ("labels-idx1", labels)):
        path = tmp_path / f"t10k-{part}-ubyte"
        write_idx(path, array)
        packed = gzip.compress(path.read_bytes(), compresslevel=1)
        path.with_name(f"{path.name}.gz").write_bytes(packed)
        path.unlink()
    with pytest.raises(ValueError, match=r"idx3-ubyte\.gz was altered: expected the SHA-256"):
        data.load("fashion-mnist", "test", root=tmp_path)
    read = mnist.read_idx
    monkeypatch.setattr(
        mnist, "read_idx", lambda path, **rest: read(path, **rest | {"digest": None})
    )
    images = data.load("fashion-mnist", "test", root=tmp_path)
    assert torch.equal(images.pixels[:, 0], torch.from_numpy(pixels))
    assert images.labels.tolist() == labels.tolist()


# ---- digits ----


def test_digits_are_split_once_and_for_all():
    from sklearn.datasets import load_digits

    train, test = data.load("digits", "train"), data.load("digits", "test")
    assert (len(train), len(test), train.shape) == (1500, 297, (1, 8, 8))
    whole = torch.cat([train.pixels, test.pixels])[:, 0].double() / 255 * 16
    assert torch.equal(whole.round(), torch.from_numpy(load_digits().images))
    assert (train.pixels.max(), train.pixels.min()) == (255, 0)
    assert torch.cat([train.labels, test.labels]).tolist() == load_digits().target.tolist()
    assert "scikit-learn" in test.source


# ---- CIFAR and SVHN ----


def pickle_as_2009(content):
    """A pickle as Python 2 and the NumPy of that time wrote them."""
    dumped = pickle.dumps(content, protocol=2)
    dumped = dumped.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    return dumped.replace(b"\x89\x88\x87", b"K\x00K\x01\x87")  # dtype("u1", 0, 1)


def make_cifar(root, kind, monkeypatch):
    """Small batches of the original format, and torchvision told their MD5."""
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    key = "labels" if kind.__name__ == "CIFAR10" else "fine_labels"
    written, rows = {}, {}
    for number, (file, _) in enumerate([*kind.train_list, *kind.test_list]):
        rows[file] = values((4, 3072), seed=number)
        content = {"data": rows[file], key: [number, 1, 2, 9]}
        (folder / file).write_bytes(pickle_as_2009(content))
        written[file] = md5(folder / file)
    meta = folder / kind.meta["filename"]
    meta.write_bytes(pickle_as_2009({kind.meta["key"]: list("abcdefghij")}))
    for part in ("train_list", "test_list"):
        monkeypatch.setattr(kind, part, [[f, written[f]] for f, _ in getattr(kind, part)])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(meta)})
    return folder, rows


@pytest.fixture(params=["cifar10", "cifar100"])
def cifar(request, tmp_path, monkeypatch):
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[request.param]
    folder, rows = make_cifar(tmp_path / "files", kind, monkeypatch)
    return request.param, kind, folder, rows


def test_cifar_gives_the_pixels_of_its_batches(cifar):
    name, kind, folder, rows = cifar
    train = data.load(name, "train", root=folder.parent)
    expected = np.concatenate([rows[file] for file, _ in kind.train_list]).reshape(-1, 3, 32, 32)
    assert torch.equal(train.pixels, torch.from_numpy(expected))
    assert train.pixels.is_contiguous()
    first = [label for n in range(len(kind.train_list)) for label in (n, 1, 2, 9)]
    assert train.labels.tolist() == first
    test = data.load(name, "test", root=folder)  # the inner folder will do, too
    assert test.pixels.flatten(1).numpy().tolist() == rows[kind.test_list[0][0]].tolist()
    assert test.labels.tolist() == [len(kind.train_list), 1, 2, 9]


def test_cifar_unpickles_nothing_that_was_altered(cifar, tmp_path):
    name, kind, folder, _ = cifar
    path = folder / kind.test_list[0][0]
    mark = tmp_path / "executed"

    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(mark),)

    path.write_bytes(pickle.dumps(Attack()))
    with pytest.raises(ValueError) as error:
        data.load(name, "test", root=folder.parent)
    says(error, path, "altered", f"expected the MD5 {kind.test_list[0][1]}", kind.filename)
    assert not mark.exists()
    pickle.loads(path.read_bytes())
    assert mark.exists()  # the attack would have worked


def test_cifar_names_the_file_that_is_missing_or_cut(cifar):
    name, kind, folder, _ = cifar
    path = folder / kind.meta["filename"]
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError) as error:
        data.load(name, "train", root=folder.parent)
    says(error, path, "cut short")
    path.unlink()
    with pytest.raises(FileNotFoundError) as error:
        data.load(name, "train", root=folder.parent)
    says(error, f"{kind.base_folder}/{path.name} is missing", kind.filename)
    with pytest.raises(data.DataNotFound) as error:
        data.load(name, "train")
    says(error, "download to", "refused", kind.filename)


def test_cifar_download_is_unpacked_into_the_cache(cifar, cache, mirror, monkeypatch):
    name, kind, folder, rows = cifar
    archive = mirror[0] / kind.filename
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, arcname=kind.base_folder)
    monkeypatch.setattr(kind, "url", mirror[1] + archive.name)
    monkeypatch.setattr(kind, "tgz_md5", md5(archive))
    test = data.load(name, "test")
    assert test.pixels.flatten(1).numpy().tolist() == rows[kind.test_list[0][0]].tolist()
    assert [path.name for path in (cache / name).iterdir()] == [kind.base_folder]


def test_svhn_reads_the_mat_file_with_zero_as_label_10(tmp_path, monkeypatch):
    scipy_io = pytest.importorskip("scipy.io")
    from torchvision.datasets import SVHN

    root = tmp_path / "svhn"
    root.mkdir()
    pixels = values((32, 32, 3, 5))
    path = root / "train_32x32.mat"
    labels = np.array([[1], [10], [3], [9], [10]], dtype=np.uint8)
    scipy_io.savemat(path, {"X": pixels, "y": labels})
    with pytest.raises(ValueError, match=r"train_32x32\.mat .* expected the MD5 e26dedcc434d2e4c"):
        data.load("svhn", "train", root=root)
    lists = {**SVHN.split_list, "train": [NOWHERE, path.name, md5(path)]}
    monkeypatch.setattr(SVHN, "split_list", lists)
    images = data.load("svhn", "train", root=root)
    assert torch.equal(images.pixels, torch.from_numpy(pixels.transpose(3, 2, 0, 1).copy()))
    assert images.pixels.is_contiguous()
    assert (images.labels.tolist(), images.labels.dtype) == ([1, 0, 3, 9, 0], torch.int64)
    with pytest.raises(FileNotFoundError, match=r"test_32x32\.mat is missing"):
        data.load("svhn", "test", root=root)
    path = root / "test_32x32.mat"
    scipy_io.savemat(path, {"X": pixels[..., :2], "y": labels[:2]}, do_compression=True)
    lists = {**SVHN.split_list, "test": [NOWHERE, path.name, md5(path)]}
    monkeypatch.setattr(SVHN, "split_list", lists)
    test = data.load("svhn", "test", root=root)
    assert torch.equal(test.pixels, images.pixels[:2]) and test.labels.tolist() == [1, 0]


# ---- CelebA-HQ and ImageNet ----


@pytest.fixture
def few(monkeypatch):
    """CelebA-HQ of 10 images, 3 for test; ImageNet of 3 classes, 6 and 3 images."""
    monkeypatch.setattr(celeba_hq, "COUNT", 10)
    monkeypatch.setattr(celeba_hq, "TEST_COUNT", 3)
    monkeypatch.setattr(imagenet, "CLASSES", 3)
    monkeypatch.setattr(imagenet, "COUNTS", {"train": 6, "test": 3})


def make_faces(folder, form="{}.jpg", numbers=range(10)):
    for number in numbers:
        save(folder / form.format(number), np.full((8, 8, 3), 20 * number, dtype=np.uint8))
    return folder


@pytest.mark.parametrize(
    ("inside", "form"),
    [
        ("", "{}.jpg"),  # 10.jpg is after 9.jpg, not after 1.jpg
        ("", "{:05}.jpg"),
        ("", "img{:05}.png"),
        ("CelebAMask-HQ/CelebA-HQ-img", "{}.jpg"),
        ("CelebA-HQ-img", "{}.jpg"),
        ("CelebA-HQ", "{:05}.png"),
        ("celeba-hq", "{:05}.png"),
        ("celeba_hq", "{:05}.png"),
        ("celeba_hq_256", "{:05}.jpg"),
    ],
)
def test_celeba_hq_is_split_by_number(tmp_path, few, inside, form):
    folder = make_faces(tmp_path / inside, form, range(1, 11))
    train, test = (data.load("celeba-hq", split, root=tmp_path) for split in ("train", "test"))
    assert train.names == tuple(form.format(number) for number in range(1, 8))
    assert test.names == tuple(form.format(number) for number in range(8, 11))
    assert test.pixels[:, 0, 0, 0].tolist() == pytest.approx([160, 180, 200], abs=2)
    assert (train.name, train.split, train.shape) == ("celeba-hq", "train", (3, 8, 8))
    assert train.source == f"7 image files in {folder}"
    assert train.labels.tolist() == [0] * 7
    assert data.load("celeba-hq", "test", root=tmp_path, side=4, channels=1).shape == (1, 4, 4)


@pytest.mark.parametrize("held_out", ["val", "test"])
def test_celeba_hq_takes_its_subfolders_as_they_are_from_the_cache(cache, few, held_out):
    folder = cache / "celeba-hq" / "celeba_hq"
    make_faces(folder / "train" / "male", "{:06}.jpg", [7, 8])
    make_faces(folder / "train" / "female", "{:06}.jpg", [1])
    make_faces(folder / held_out / "male", "{:06}.jpg", [3])
    train, test = (data.load("celeba-hq", split) for split in ("train", "test"))
    assert train.names[0] == "train/female/000001.jpg"
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1, 1], [1])
    assert (train.name, train.split, test.split) == ("celeba-hq", "train", "test")


def test_celeba_hq_says_what_is_missing_and_where_to_put_it(tmp_path, cache, few):
    with pytest.raises(data.DataNotFound) as error:
        data.load("celeba-hq", "train")
    says(error, f"{cache / 'celeba-hq'}: no such folder", "download: none", "CelebAMask-HQ.zip")
    says(error, "--root FOLDER")
    assert not cache.exists()
    (tmp_path / "train").mkdir()
    with pytest.raises(FileNotFoundError, match=r"train has neither val nor test beside it"):
        data.load("celeba-hq", "train", root=tmp_path)
    (tmp_path / "train").rmdir()
    with pytest.raises(
        FileNotFoundError, match=r"neither images nor train/ in it, nor in its .*_256"
    ):
        data.load("celeba-hq", "train", root=tmp_path)


def test_celeba_hq_is_whole_and_numbered_or_a_folder_by_its_path(tmp_path, few):
    make_faces(tmp_path, numbers=range(9))
    advice = f"as a folder of images (--data {tmp_path})"
    for split in ("train", "test"):
        with pytest.raises(ValueError) as error:
            data.load("celeba-hq", split, root=tmp_path)
        says(error, tmp_path, "is not the whole", "expected 10 images, got 9", advice)
    assert data.load(str(tmp_path), "test").names == ("6.jpg",)
    make_faces(tmp_path, "{:05}.jpg", [8])
    with pytest.raises(ValueError) as error:
        data.load("celeba-hq", "train", root=tmp_path)
    says(error, tmp_path / "8.jpg", tmp_path / "00008.jpg", "each number once", advice)
    (tmp_path / "00008.jpg").rename(tmp_path / "face.jpg")
    with pytest.raises(ValueError) as error:
        data.load("celeba-hq", "train", root=tmp_path)
    says(error, f"{tmp_path / 'face.jpg'} has no number", "img00000.png", advice)


WNIDS = ("n01440764", "n01443537", "n15075141")


def make_imagenet(root):
    """Of other sizes and shapes, one grey and one of four colours, as in the original."""
    for number, wnid in enumerate(reversed(WNIDS)):
        for image in range(2):
            array = values((20 + image, 30 + number, 3), seed=image)
            save(root / "train" / wnid / f"{wnid}_{image}.JPEG", array)
        path = root / "val" / wnid / f"ILSVRC2012_val_0000000{number + 1}.JPEG"
        path.parent.mkdir(parents=True)
        mode = ("L", "CMYK", "RGB")[number]
        Image.fromarray(values((24, 40, 3), seed=number)).convert(mode).save(path)
    return root


def test_imagenet_is_torchvisions_layout_with_labels_by_sorted_wnid(cache, few):
    from torchvision.datasets import ImageFolder

    root = make_imagenet(cache / "imagenet")
    torch.save(({}, []), root / "meta.bin")  # torchvision leaves it there
    train, test = (data.load("imagenet", split, side=16) for split in ("train", "test"))
    for images, folder in ((train, "train"), (test, "val")):
        theirs = ImageFolder(root / folder)
        assert [str(root / name) for name in images.names] == [path for path, _ in theirs.samples]
        assert images.labels.tolist() == theirs.targets
        assert (images.name, images.shape) == ("imagenet", (3, 16, 16))
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert (train.split, test.split) == ("train", "test")
    shutil.rmtree(root / "train")  # one split will do, and numbers its classes the same
    again = data.load("imagenet", "test", root=root, side=16, channels=1)
    assert (again.labels.tolist(), again.shape) == ([0, 1, 2], (1, 16, 16))


def test_imagenet_side_256_is_the_papers_centre_crop(tmp_path, few):
    root = make_imagenet(tmp_path)
    array = np.kron(values((3, 5, 3)), np.ones((128, 128, 1), dtype=np.uint8))  # 384 × 640
    path = save(root / "val" / WNIDS[0] / "ILSVRC2012_val_00000003.JPEG", array)
    got = data.load("imagenet", "test", root=root, side=256).pixels[0].permute(1, 2, 0).numpy()
    with Image.open(path) as image:  # the shorter side to 256, then the centre
        whole = np.asarray(image.resize((427, 256), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(whole[:, 85:341] - got).mean() < 3  # 85 1/3 + 256 + 85 1/3 pixels
    assert np.abs(whole[:, 82:338] - got).mean() > 3
    cut = data.load("imagenet", "test", root=root, side=256, resize=False)
    with Image.open(path) as image:  # the central 256 × 256 pixels (Appendix I)
        centre = np.asarray(image.crop((192, 64, 448, 320)))
    assert np.array_equal(cut.pixels[0].permute(1, 2, 0).numpy(), centre)
    small = data.load("imagenet", "test", root=root, side=512, resize=False)  # 384 pixels high
    whole = data.load("imagenet", "test", root=root, side=512)
    assert torch.equal(small.pixels, whole.pixels)


def test_imagenet_says_what_is_missing_and_how_archives_are_unpacked(tmp_path, cache, few):
    with pytest.raises(data.DataNotFound) as error:
        data.load("imagenet", "train", side=16)
    says(error, f"{cache / 'imagenet'}: no such folder", "download: none", "train/ and val/")
    with pytest.raises(FileNotFoundError, match=r"val/ is missing, and so is .*img_val\.tar"):
        data.load("imagenet", "test", root=tmp_path, side=16)
    (tmp_path / "ILSVRC2012_img_train.tar").touch()
    with pytest.raises(FileNotFoundError) as error:
        data.load("imagenet", "train", root=tmp_path, side=16)
    says(error, "train/ is missing, but ILSVRC2012_img_train.tar is there: unpack it with")
    says(error, f"torchvision.datasets.ImageNet('{tmp_path}', 'train')", "ILSVRC2012_devkit_t12")


def test_imagenet_is_whole_and_in_classes_or_a_folder_by_its_path(tmp_path, few):
    root = make_imagenet(tmp_path)
    path = next((root / "val" / WNIDS[1]).iterdir())
    advice = (f"as a folder of images (--data {root})", "img_val.tar", "ImageNet('")
    shutil.move(path, root / "val" / path.name)  # as the archive has it, without classes
    with pytest.raises(ValueError) as error:
        data.load("imagenet", "test", root=root, side=16)
    says(error, root / "val" / path.name, "is in no class", "such as n01440764", *advice)
    (root / "val" / path.name).unlink()
    with pytest.raises(ValueError) as error:
        data.load("imagenet", "test", root=root, side=16)
    says(error, root / "val", "expected 3 images of 3 classes, got 2 of 2", *advice)
    assert len(data.load(str(root), "test", side=16)) == 2


def test_imagenet_needs_a_side_and_says_what_fits_before_it_lists_a_million_files(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match=r"imagenet needs a side: .* got none; .*--size N"):
        data.load("imagenet", "train", root=tmp_path)
    with pytest.raises(ValueError) as error:
        data.load("imagenet", "train", root=tmp_path, side=256, memory=True)
    says(error, "imagenet does not fit", "4 GiB", "1,281,167 images of 3 × 256 × 256")
    says(error, "side of at most 33", "--data.memory", "from the disk")


# ---- side and channels of named data sets ----


def test_grey_repeats_into_colour():
    grey, colour = data.load("digits", "test"), data.load("digits", "test", channels=3)
    assert colour.shape == (3, 8, 8)
    assert torch.equal(colour.pixels, grey.pixels.expand(-1, 3, -1, -1))


def test_colour_becomes_grey_as_in_pillow():
    images = made(count=20, channels=3, side=16)
    grey = conform.conform(images, side=None, channels=1).pixels
    for before, after in zip(images.pixels, grey, strict=True):
        oracle = np.asarray(Image.fromarray(before.permute(1, 2, 0).numpy()).convert("L"))
        assert after[0].numpy().tolist() == oracle.tolist()


@pytest.mark.parametrize("side", [7, 24])
@pytest.mark.parametrize(("least", "most", "off"), [(60, 196, 1), (0, 256, 40)])
def test_resizing_is_pillows_bicubic(side, least, most, off, monkeypatch):
    """To a level; near black and white Pillow also cuts between its two passes, we do not."""
    monkeypatch.setattr(conform, "_CHUNK_BYTES", 10_000)  # several chunks, the last short
    images = made(count=10, channels=3, side=16)
    images.pixels.copy_(least + images.pixels.float() * ((most - least) / 256))
    resized = conform.conform(images, side=side, channels=None).pixels
    assert resized.shape == (10, 3, side, side)
    for before, after in zip(images.pixels, resized, strict=True):
        image = Image.fromarray(before.permute(1, 2, 0).numpy())
        oracle = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)).astype(int)
        assert np.abs(after.permute(1, 2, 0).numpy() - oracle).max() <= off


def test_side_and_channels_together():
    images = data.load("digits", "test", side=12, channels=3)
    assert images.shape == (3, 12, 12)
    assert len(images.labels) == 297


# ---- arguments of load ----


def test_an_unknown_name_gets_the_nearest_and_the_list():
    with pytest.raises(ValueError) as error:
        data.load("Fashion-MNITS", "train")
    says(error, "Did you mean 'fashion-mnist'?", "cifar100", "existing folder")
    with pytest.raises(ValueError, match=r"got neither\.$"):
        data.load("zzzzzz", "train")
    with pytest.raises(ValueError, match="Did you mean 'celeba-hq'"):
        data.load("CelebAHQ", "train")
    with pytest.raises(ValueError, match="unknown data set ''"):
        data.load("", "train")


def test_help_and_docs_name_all_data_sets():
    from mqvae.data import ImageData

    page = Path(__file__).parents[2] / "docs" / "datasets.md"
    table = page.read_text(encoding="utf-8").split("## ")[0]
    for name in data.DATASETS:
        assert name in ImageData.__doc__ and f"`{name}`" in table, name


def test_a_file_is_no_data_set(tmp_path):
    path = save(tmp_path / "a.png", values((4, 4)))
    with pytest.raises(ValueError, match="got a file"):
        data.load(str(path), "train")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split": "val"}, ("unknown split 'val'", "'train' or 'test'")),
        ({"side": 0}, ("side", "at least 1", "got 0")),
        ({"channels": 2}, ("channels", "1 (grey) or 3 (colour)", "got 2")),
    ],
)
def test_options_out_of_range(options, words):
    with pytest.raises(ValueError) as error:
        data.load("digits", **{"split": "test", **options})
    says(error, *words)


def test_what_does_not_fit_in_memory_is_refused_before_it_is_made(tmp_path, monkeypatch):
    with pytest.raises(ValueError) as error:
        data.load("digits", "test", side=20_000, channels=3)
    says(error, "297 images of 3 × 20000 × 20000", "356,400,000,000 bytes", "4 GiB", "side")
    says(error, "fewer images", "--data FOLDER")
    monkeypatch.setattr(images_module, "MAX_BYTES", 9 * 3 * 8 * 8 - 1)
    for number in range(10):
        save(tmp_path / f"{number}.png", values((8, 8, 3)))
    with pytest.raises(ValueError, match=r"side of at most 7 .* from the disk"):
        data.load(str(tmp_path), "train", memory=True)
    assert data.load(str(tmp_path), "train", side=7, memory=True).shape == (3, 7, 7)


# ---- folders ----


def test_a_folder_gives_a_tenth_of_its_files_to_the_test_split(tmp_path):
    arrays = {f"{number:02}.png": values((6, 6), seed=number) for number in range(50)}
    for name, array in arrays.items():
        save(tmp_path / name, array)
    train, test = (data.load(str(tmp_path), split) for split in ("train", "test"))
    # As the first version that splits by hash had it, and all later ones have to.
    assert test.names == TESTS_OF_50
    assert sorted(train.names + test.names) == list(arrays)
    for images in (train, test):
        for name, pixels in zip(images.names, images.pixels, strict=True):
            assert pixels[0].tolist() == arrays[name].tolist()
    assert (train.name, train.split, train.shape) == (str(tmp_path), "train", (1, 6, 6))
    assert train.labels.tolist() == [0] * len(train)


def test_two_images_are_one_each_and_one_is_too_few(tmp_path):
    save(tmp_path / "a.png", values((4, 4)))
    with pytest.raises(ValueError, match=r"too few images to split: expected at least 2 .* got 1"):
        data.load(str(tmp_path), "train")
    save(tmp_path / "b.png", values((4, 4)))
    assert data.load(str(tmp_path), "test").names == ("a.png",)
    assert data.load(str(tmp_path), "train").names == ("b.png",)


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_subfolders_split_and_classes_have_the_same_numbers_in_both(tmp_path, held_out):
    for path in ("train/cat/1.png", "train/ant/1.png", "train/ant/deep/2.png"):
        save(tmp_path / path, values((4, 4)))
    for path in (f"{held_out}/cat/1.png", f"{held_out}/dog/1.png"):
        save(tmp_path / path, values((4, 4)))
    train, test = (data.load(str(tmp_path), split) for split in ("train", "test"))
    assert train.names == ("train/ant/1.png", "train/ant/deep/2.png", "train/cat/1.png")
    assert train.labels.tolist() == [0, 0, 1]
    assert test.names == (f"{held_out}/cat/1.png", f"{held_out}/dog/1.png")
    assert test.labels.tolist() == [1, 2]


def test_class_folders_without_split_folders(tmp_path):
    for name in ("b/1", "b/2", "a/1"):
        save(tmp_path / f"{name}.png", values((4, 4)))
    train = data.load(str(tmp_path), "train")
    assert (train.names, train.labels.tolist()) == (("a/1.png", "b/1.png"), [0, 1])
    save(tmp_path / "loose.png", values((4, 4)))
    with pytest.raises(ValueError) as error:
        data.load(str(tmp_path), "train")
    says(error, tmp_path / "loose.png", "has no label, as 1 of the 4", "--data.classes 1")
    assert data.load(str(tmp_path), "train", labels=False).labels.tolist() == [0, 0, 0]


def test_an_empty_test_folder_is_named(tmp_path):
    save(tmp_path / "train" / "1.png", values((4, 4)))
    (tmp_path / "test").mkdir()
    with pytest.raises(FileNotFoundError) as error:
        data.load(str(tmp_path), "train")
    says(error, tmp_path / "test", "holds no images", ".png", ".webp")


def test_root_is_where_a_relative_folder_starts(tmp_path):
    for number in range(2):
        save(tmp_path / "pictures" / f"{number}.png", values((4, 4)))
    assert data.load("pictures", "test", root=tmp_path).names == ("0.png",)


def test_grey_unless_one_image_in_either_split_is_in_colour(tmp_path):
    grey, colour = values((4, 4)), values((4, 4, 3), seed=1)
    for number in range(3):
        save(tmp_path / f"{number}.png", grey)
    assert data.load(str(tmp_path), "train").shape == (1, 4, 4)
    save(tmp_path / "2.png", colour)  # the test split's only one
    assert data.load(str(tmp_path), "train").shape == (3, 4, 4)
    test = data.load(str(tmp_path), "test")
    assert test.pixels[0].permute(1, 2, 0).numpy().tolist() == colour.tolist()
    luma = np.asarray(Image.fromarray(colour).convert("L"))
    assert data.load(str(tmp_path), "test", channels=1).pixels[0, 0].tolist() == luma.tolist()


def test_another_size_is_named_and_side_settles_it(tmp_path):
    for number in range(3):
        save(tmp_path / f"{number}.png", values((8, 8)))
    save(tmp_path / "odd.png", values((8, 10)))
    for split in ("train", "test"):
        with pytest.raises(ValueError) as error:
            data.load(str(tmp_path), split)
        says(error, tmp_path / "odd.png", "expected 8 × 8", "got 10 × 8", "--size N")
    assert data.load(str(tmp_path), "train", side=8).shape == (1, 8, 8)
    (tmp_path / "0.png").unlink()
    save(tmp_path / "0.png", values((8, 10)))
    with pytest.raises(ValueError, match=r"0\.png is not square: .* got 10 × 8"):
        data.load(str(tmp_path), "train")


@pytest.mark.parametrize("size", [(20, 40), (40, 20)])
def test_side_resizes_the_shorter_side_and_crops_the_centre(tmp_path, size):
    array = values(size)
    path = save(tmp_path / "a.png", array)
    got = data.load_files([path], side=10).pixels[0, 0].numpy().astype(int)
    width, height = size[1] // 2, size[0] // 2
    whole = Image.fromarray(array).resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - 10) // 2, (height - 10) // 2
    oracle = np.asarray(whole.crop((left, top, left + 10, top + 10))).astype(int)
    # At the cut, bicubic sees beyond it only if the crop comes last: look inside.
    assert np.abs(got - oracle)[2:-2, 2:-2].max() <= 1


def test_files_of_many_kinds(tmp_path):
    array = np.zeros((8, 8, 3), dtype=np.uint8)
    array[..., 0], array[:4, :, 1] = 250, 130
    lossless = ["a.PNG", "b.bmp", "c.tif", "d.tiff"]
    paths = [save(tmp_path / name, array) for name in lossless]
    paths += [save(tmp_path / "e.jpg", array, quality=95), save(tmp_path / "f.jpeg", array)]
    paths += [save(tmp_path / "g.webp", array, lossless=True)]
    frames = [Image.fromarray(array), Image.fromarray(255 - array)]
    frames[0].save(tmp_path / "h.gif", save_all=True, append_images=frames[1:])
    assert data.image_files(tmp_path) == [*paths, tmp_path / "h.gif"]
    images = data.load_files(data.image_files(tmp_path))
    for name, pixels in zip(images.names, images.pixels, strict=True):
        off = np.abs(pixels.permute(1, 2, 0).numpy().astype(int) - array).max()
        assert off <= (60 if "j" in name else 0), name


def test_modes_come_out_as_what_a_person_sees(tmp_path):
    deep = np.array([[0, 128, 129], [256, 257, 30_000], [65_535, 65_407, 1_000]], dtype=np.uint16)
    path = save(tmp_path / "deep.png", deep)
    expected = np.rint(deep / 257).astype(int).tolist()
    assert data.load_files([path]).pixels[0, 0].tolist() == expected

    bits = values((5, 5)) > 127
    assert data.load_files([save(tmp_path / "bits.png", bits)]).pixels[0, 0].bool().tolist() == (
        bits.tolist()
    )

    turned = values((6, 6))
    exif = Image.Exif()
    exif[0x0112] = 6  # held on its side: to be turned clockwise
    path = save(tmp_path / "turned.png", turned, exif=exif)
    assert data.load_files([path]).pixels[0, 0].tolist() == np.rot90(turned, -1).tolist()

    palette = Image.fromarray(values((4, 4))).convert("P")
    palette.save(tmp_path / "palette.png", transparency=bytes(range(256)))
    assert data.load_files([tmp_path / "palette.png"]).shape == (3, 4, 4)


def test_floating_point_images_are_refused(tmp_path):
    path = save(tmp_path / "f.tif", np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4))
    with pytest.raises(ValueError, match=r"f\.tif cannot be read: .* convert it to 8 or 16 bits"):
        data.load_files([path])


@pytest.mark.parametrize("kind", ["cut", "text", "empty"])
@pytest.mark.parametrize("options", [{}, {"side": 8, "channels": 3}])
def test_an_image_that_cannot_be_read_is_named(tmp_path, kind, options):
    for number in range(3):
        save(tmp_path / f"{number}.png", values((32, 32)))
    bad = tmp_path / "1.png"  # for training; 2.png is for test
    whole = bad.read_bytes()
    bad.write_bytes({"cut": whole[: len(whole) // 2], "text": b"hello", "empty": b""}[kind])
    with pytest.raises(ValueError, match="cannot be read: expected an image") as error:
        data.load(str(tmp_path), "train", **options)
    says(error, bad, "take it out")


def test_image_files_says_what_is_wrong_with_a_path(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(FileNotFoundError) as error:
        data.image_files(tmp_path)
    says(error, tmp_path, "holds no images", ".jpg", ".png")
    with pytest.raises(FileNotFoundError, match="holds no images"):
        data.load(str(tmp_path), "train")
    with pytest.raises(ValueError, match=r"notes\.txt is not an image by its name.*\.png"):
        data.image_files(tmp_path / "notes.txt")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        data.image_files(tmp_path / "nothing.png")
    path = save(tmp_path / "a.png", values((4, 4)))
    assert data.image_files(str(path)) == [path]


def test_image_files_follows_links_but_not_in_circles_and_skips_hidden(tmp_path):
    save(tmp_path / "elsewhere" / "1.png", values((4, 4)))
    save(tmp_path / "photos" / "b.png", values((4, 4)))
    save(tmp_path / "photos" / "a" / "c.png", values((4, 4)))
    save(tmp_path / "photos" / ".trash" / "x.png", values((4, 4)))
    (tmp_path / "photos" / "._b.png").write_bytes(b"a Mac was here")
    (tmp_path / "photos" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "a" / "up").symlink_to(tmp_path / "photos")
    names = [
        path.relative_to(tmp_path).as_posix() for path in data.image_files(tmp_path / "photos")
    ]
    assert names == ["photos/a/c.png", "photos/b.png", "photos/link/1.png"]


def test_load_files_takes_exactly_these_in_this_order(tmp_path):
    arrays = {name: values((4, 4), seed=seed) for seed, name in enumerate(("x/b", "a", "y/c"))}
    paths = [save(tmp_path / f"{name}.png", array) for name, array in arrays.items()]
    images = data.load_files([*paths, paths[0]])
    assert images.names == ("x/b.png", "a.png", "y/c.png", "x/b.png")
    expected = [arrays[name].tolist() for name in ("x/b", "a", "y/c", "x/b")]
    assert images.pixels[:, 0].tolist() == expected
    assert (images.split, images.labels.tolist()) == ("files", [0, 0, 0, 0])
    with pytest.raises(ValueError, match="no image files"):
        data.load_files([])
    with pytest.raises(FileNotFoundError, match=r"gone\.png does not exist"):
        data.load_files([tmp_path / "gone.png"], side=4, channels=1)


# ---- batches ----


def test_a_batch_is_bytes_over_255():
    images = made()
    x, y = Batches(images, 8, seed=0).next()
    assert (x.dtype, x.shape, y.dtype, y.shape) == (torch.float32, (8, 1, 4, 4), torch.int64, (8,))
    assert torch.equal(x, images.pixels[y].to(torch.float32) / 255)  # labels are the positions
    everything, _ = next(in_order(images, 50))
    assert torch.equal((everything * 255).round().to(torch.uint8), images.pixels)
    assert everything.min() >= 0 and everything.max() <= 1


def test_an_epoch_takes_no_image_twice_and_drops_the_short_batch():
    batches = Batches(made(50), 8, seed=3)
    assert batches.batches_per_epoch == 6
    seen = []
    for _ in range(6):
        assert batches.epoch == 0
        seen += batches.next()[1].tolist()
    assert batches.epoch == 1
    assert len(set(seen)) == 48
    assert seen != sorted(seen)
    second = [label for _ in range(6) for label in batches.next()[1].tolist()]
    assert len(set(second)) == 48 and second != seen


def test_the_order_follows_from_seed_and_epoch_alone():
    def epoch(seed, number):
        batches = Batches(made(50), 50, seed=seed)
        batches.load_state_dict({"epoch": number, "position": 0})
        return batches.next()[1].tolist()

    orders = {(seed, number): epoch(seed, number) for seed in range(3) for number in range(3)}
    assert len({tuple(order) for order in orders.values()}) == 9  # (0, 1) is not (1, 0)
    assert all(epoch(*key) == order for key, order in orders.items())
    assert all(sorted(order) == list(range(50)) for order in orders.values())


@pytest.mark.parametrize("before", [0, 1, 5, 6, 7, 13])
def test_resuming_gives_the_batches_that_would_have_followed(before):
    images = made(50)
    straight = Batches(images, 8, seed=1)
    for _ in range(before):
        straight.next()
    state = straight.state_dict()
    assert state == {"epoch": before // 6, "position": before % 6}
    resumed = Batches(images, 8, seed=1)
    resumed.next()  # whatever happened before is forgotten
    resumed.load_state_dict(state)
    for _ in range(14):
        (x, y), (again, labels) = straight.next(), resumed.next()
        assert torch.equal(x, again) and torch.equal(y, labels)
    assert straight.state_dict() == resumed.state_dict()


def test_ranks_are_disjoint_and_together_are_one_process_with_all_the_batch():
    images = made(50)
    ranks = [Batches(images, 4, seed=5, rank=rank, world_size=3) for rank in range(3)]
    alone = Batches(images, 12, seed=5)
    for _ in range(9):  # over two epochs' ends
        parts = [batches.next()[1] for batches in ranks]
        together = torch.cat(parts)
        assert len(set(together.tolist())) == 12
        assert torch.equal(together, alone.next()[1])
    assert [batches.state_dict() for batches in ranks] == [alone.state_dict()] * 3


def test_global_random_state_is_neither_changed_nor_read():
    def labels(global_seed):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        batches = Batches(made(), 8, seed=0)
        found = [batches.next()[1].tolist() for _ in range(8)]  # into the second epoch
        assert torch.equal(torch.get_rng_state(), before)
        return found

    assert labels(1) == labels(2)


def test_batches_iterate_endlessly():
    batches = iter(Batches(made(20), 10, seed=0))
    labels = [next(batches)[1] for _ in range(7)]
    assert sorted(torch.cat(labels[4:6]).tolist()) == list(range(20))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, ("batch_size", "1 to 50", "got 0")),
        ({"batch_size": 51}, ("batch_size", "1 to 50", "got 51")),
        ({"batch_size": 17, "world_size": 3}, ("batch_size", "1 to 16", "3 process", "got 17")),
        ({"batch_size": 1, "world_size": 0}, ("world_size", "1 to 50", "got 0")),
        ({"batch_size": 1, "world_size": 51}, ("world_size", "1 to 50", "got 51")),
        ({"batch_size": 1, "rank": 2, "world_size": 2}, ("rank", "0 to 1", "got 2")),
        ({"batch_size": 1, "rank": -1}, ("rank", "0 to 0", "got -1")),
    ],
)
def test_batches_out_of_range(options, words):
    with pytest.raises(ValueError) as error:
        Batches(made(50), seed=0, **options)
    says(error, "out of range", *words)


@pytest.mark.parametrize(
    "state",
    [
        {"epoch": 0},
        {"epoch": 0, "position": 0, "seed": 1},
        {"epoch": 0, "position": 6},
        {"epoch": -1, "position": 0},
        {"epoch": 0, "position": -1},
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(state):
    batches = Batches(made(50), 8, seed=0)
    batches.next()
    with pytest.raises(ValueError, match="state of the batches"):
        batches.load_state_dict(state)
    assert batches.state_dict() == {"epoch": 0, "position": 1}


def test_in_order_gives_each_image_once():
    images = made(50)
    sizes, labels, pixels = [], [], []
    for x, y in in_order(images, 16):
        sizes.append(len(x))
        labels += y.tolist()
        pixels.append(x)
    assert sizes == [16, 16, 16, 2]
    assert labels == list(range(50))
    assert torch.equal(torch.cat(pixels), images.pixels.to(torch.float32) / 255)
    with pytest.raises(ValueError, match="expected at least 1, got 0"):
        in_order(images, 0)  # at once, not at the first batch


def test_the_loop_does_not_wait_for_its_input():
    batches = Batches(made(60_000, side=28), 512, seed=0)
    seconds = []
    for _ in range(60):
        start = time.perf_counter()
        batches.next()
        seconds.append(time.perf_counter() - start)
    assert statistics.median(seconds) < 5e-3  # a tenth of a millisecond on an idle core


def test_torchvision_is_imported_late_and_nothing_else_of_mqvae():
    files = sorted(Path(data.__file__).parent.glob("*.py"))
    top, anywhere = set(), set()
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module]
            anywhere.update(names)
            if node in tree.body:
                top.update(name.split(".")[0] for name in names)
    third_party = {name for name in top if name not in sys.stdlib_module_names}
    assert third_party == {"mqvae", "numpy", "PIL", "torch"}
    ours = {name for name in anywhere if name.split(".")[0] == "mqvae"}
    beside = {name for name in ours if not name.startswith("mqvae.data.")}
    assert beside == {
        "mqvae.cache",
        "mqvae.errors",
        "mqvae.files",
        "mqvae.optional",
        "mqvae.ranges",
    }
    assert "torchvision" in {name.split(".")[0] for name in anywhere}


def test_large_images_come_in_smaller_batches():
    assert data.fitting(512, (1, 28, 28)) == data.fitting(512, (3, 64, 64)) == 512
    assert data.fitting(512, (3, 256, 256)) == 32
    assert data.fitting(4, (3, 1024, 1024)) == 1
    assert data.fitting(512, (3, 32, 32), side=32) == data.fitting(512, (1, 8, 8), side=32) == 512
    assert data.fitting(512, (3, 256, 256), side=32) == 8
