"""How much memory a step of each rule takes, relative to `Joint`'s on the same batch."""

import statistics
import subprocess
import sys

import torch

from benchmarks.presets import PRESET, RULES, settings_of, step_on_noise
from benchmarks.resident import forget, most_resident, resident
from benchmarks.table import Cell, Table

AT_MOST = 1.25  # times Joint's
PROCESSES = 3  # of each rule; the median of their peaks counts
WARM_UP, STEPS = 2, 2
MIB = 2**20


def run(*, device: str, rounds: int | None, only: str, preset: str | None = None) -> list[Table]:
    """One table; `rounds` is the number of processes of each rule.

    Raises:
        ValueError: if there is no such preset.
        RuntimeError: if a step fails, with the last that it said.
    """
    preset, rounds = preset or PRESET, rounds or PROCESSES
    settings_of(preset, "Joint", device)  # what is wrong with it is said here, not in a process
    wanted = [rule for rule in RULES if only in rule]
    if not wanted:
        return []
    rows: list[dict[str, Cell]] = []
    first: tuple[float, float] | None = None
    for rule in dict.fromkeys(["Joint", *wanted]):
        found = [in_a_process(preset, rule, device) for _ in range(rounds)]
        whole = statistics.median(peak for peak, _ in found)
        step = statistics.median(peak - program for peak, program in found)
        first = first or (whole, step)
        ratio = whole / first[0]
        row: dict[str, Cell] = {"step": rule, "peak, MiB": whole / MIB, "ratio": ratio}
        if rule != "Joint":
            row |= {"at most": AT_MOST, "held": "yes" if ratio <= AT_MOST else "no"}
        if device == "cpu":
            row |= {"beyond the program, MiB": step / MIB, "ratio of that": step / first[1]}
        rows.append(row)
    what = "resident set" if device == "cpu" else "torch.cuda.max_memory_allocated"
    return [
        Table(
            "memory",
            "Peak memory of a step, relative to Joint on the same batch",
            {"preset": preset, "measured": what, "processes of each": rounds},
            rows,
            [
                f"Each rule has processes of its own. After {WARM_UP} steps, by which all that "
                f"stays is there, the peak is that of {STEPS} more. Images are noise of the "
                "preset's form, the codebook is drawn at random."
                + (
                    " *Beyond the program* is without what the interpreter and its libraries take."
                    if device == "cpu"
                    else ""
                )
            ],
        )
    ]


def in_a_process(preset: str, rule: str, device: str) -> tuple[float, float]:
    """What `measured` finds, in a fresh process.

    Raises:
        RuntimeError: if it fails there; with the last that it said.
    """
    asked = f"measured({preset!r}, {rule!r}, {device!r})"
    code = f"from benchmarks.memory import measured; print(*{asked})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"killed by signal {-done.returncode}"]
        raise RuntimeError(f"{rule} of {preset} could not be measured: {said[-1]}")
    peak, program = map(float, done.stdout.split()[-2:])
    return peak, program


def measured(preset: str, rule: str, device: str) -> tuple[float, float]:
    """The peak of a step in this process, and what the program took before, in bytes."""
    program = resident() if device == "cpu" else 0.0
    step = step_on_noise(preset, rule, device)
    for _ in range(WARM_UP):
        step()
    if device == "cpu":
        forget()
    else:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(STEPS):
        step()
    return most_resident() if device == "cpu" else float(torch.cuda.max_memory_allocated()), program
