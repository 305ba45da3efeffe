"""Shared fixtures."""

import gc
import json
import os
import shutil
import warnings
from itertools import combinations, groupby

import pytest
from markupsafe import Markup

# Laid over digits-tiny: a run that takes no time.
SMALL = {
    "name": "small",
    "steps": 3,
    "data": {"name": "digits", "side": 8, "batch_size": 100},
    "network": {"width": 8, "residual_blocks": 1},
    "quantizer": {"init_args": {"num_codes": 20, "dim": 4}},
    "update": {"class_path": "mqvae.Joint"},
    "optimizer": {"codebook_lr": 1e-3},
    "trainer": {"accelerator": "cpu"},
}

os.fsync = lambda file: None  # no test cuts the power, and a disk may take its time


def pytest_addoption(parser):
    parser.addoption(
        "--rounding",
        action="store_true",
        help="results of other shapes differ in their last bit, see tests/rounding.py",
    )


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "covering(n): of all combinations of parameters, as many as have every n values"
    )
    if hasattr(config, "workerinput") or not getattr(config.option, "numprocesses", None):
        prepare()  # who hands tests out to workers imports no torch


def prepare():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch.utils.tensorboard  # its own imports warn

    # The problems are tiny: threads would only wait for each other.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if not torch.accelerator.is_available():  # the seed of each kind would be noted, and who asked
        torch.manual_seed = lambda seed: torch.default_generator.manual_seed(int(seed))
    torch.manual_seed(0)  # what is made while tests are collected is the same each time


def pytest_collection_finish():
    gc.freeze()  # what is imported by now stays: the collector need not look at it again
    gc.set_threshold(20_000, 20, 20)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Products of parameters are cut to what `covering` asks for: 1, every value; 2, every pair."""

    def cut(function, group):
        mark = group[0].get_closest_marker("covering") if function else None
        if mark is None or len(group) == 1:
            return group
        sets = {
            item: set(
                combinations([(k, id(v)) for k, v in item.callspec.params.items()], *mark.args)
            )
            for item in group
        }
        missing, kept = set().union(*sets.values()), set()
        while missing:
            best = max(group, key=lambda item: len(sets[item] & missing))
            missing -= sets[best]
            kept.add(best)
        return [item for item in group if item in kept]

    groups = groupby(items, lambda item: getattr(item, "function", None))
    items[:] = [item for function, group in groups for item in cut(function, list(group))]
    # The first go to one worker: two processes are started once, and not by each.
    items.sort(key=lambda item: "pair" not in getattr(item, "fixturenames", ()))


@pytest.fixture(autouse=True)
def seeded(request):
    import torch

    torch.manual_seed(0)
    if not request.config.getoption("rounding"):
        yield
        return
    from rounding import Rounding

    with Rounding():
        yield


@pytest.fixture(scope="session")
def pair():
    """Two processes that a function is called in: see tests/pairs.py."""
    from pairs import Pair

    both = Pair()
    yield both
    both.stop()


@pytest.fixture
def uncharted(monkeypatch):
    """Reports without what is drawn in their charts, for tests of their words, tables, pictures."""

    def empty(draw, *, name, alt, width=0):
        return Markup('<svg class="chart" role="img" aria-label="{}"></svg>').format(alt)

    for module in ("charts", "rates"):
        monkeypatch.setattr(f"mqvae.report.{module}.drawing", empty)


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """The folder of a finished run of digits-tiny under other settings, trained once for all."""
    from mqvae.config import Settings, load_preset
    from mqvae.training import begin

    made = {}

    def run(*deltas):
        key = json.dumps(deltas, sort_keys=True)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("once") / "run"
            begin(Settings.of(load_preset("digits-tiny", *deltas)), made[key]).fit()
        return made[key]

    return run


@pytest.fixture(scope="module")
def trained(once, tmp_path_factory):
    """A copy of such a run for the tests of a module; one for each name."""
    made = {}

    def run(name, *deltas):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("runs") / name
            shutil.copytree(once(*deltas), made[name])
        return made[name]

    return run
