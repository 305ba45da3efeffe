"""What long work shows of itself."""

import sys
from itertools import pairwise

import pytest

from mqvae import progress
from mqvae.progress import Progress, watched


class Clock:
    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def lines(clock, capsys, *, total, seconds_a_step, start=0, silent=False):
    with Progress("run", start, total, silent=silent) as show:
        for step in range(start + 1, total + 1):
            clock.now += seconds_a_step
            show.advance(step, "loss")
    return capsys.readouterr().err.splitlines()


def test_a_log_has_a_line_every_thirty_seconds(clock, capsys):
    found = lines(clock, capsys, total=1000, seconds_a_step=0.7)  # 700 seconds
    steps = [int(line.split()[1].partition("/")[0]) for line in found]
    assert steps[0] == 1 and steps[-1] == 1000
    gaps = [0.7 * (b - a) for a, b in pairwise(steps[:-1])]
    assert all(30 <= gap < 31 for gap in gaps)
    assert len(found) == 25
    assert found[1] == "run: 44/1000, 1.4 steps/s, 669 s left, loss"


def test_slow_steps_have_a_line_each_and_few_fast_ones_two(clock, capsys):
    assert len(lines(clock, capsys, total=5, seconds_a_step=60)) == 5
    assert len(lines(clock, capsys, total=50_000, seconds_a_step=1e-4)) == 2
    assert lines(clock, capsys, total=3, seconds_a_step=0, start=2)[-1].startswith("run: 3/3")
    assert lines(clock, capsys, total=5, seconds_a_step=60, silent=True) == []


def test_a_terminal_has_a_bar(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Progress("run", 0, 10) as show:
        for step in range(1, 11):
            clock.now += 1
            show.advance(step, "loss")
    assert "10/10" in capsys.readouterr().err


def test_what_is_watched_has_a_line_every_thirty_seconds_too(clock, capsys):
    for seconds, count in ((0.5, 3), (0.01, 0)):
        for _ in watched(range(200), 200, "encoding"):
            clock.now += seconds
        found = capsys.readouterr().err.splitlines()
        assert len(found) == count
        if found:
            assert found[0] == "encoding: 60/200, 70 s left"
