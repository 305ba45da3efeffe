"""Few-shot codebooks: encoder and decoder frozen, n = 5, 25, 100 images of a new domain known.

Written down before any test domain was encoded: the hypergradient wins if at n = 25, on each of the
five test domains, its MSE is at least 5% below that of every baseline at equal entropy of the codes
(the lower of the two methods' entropies), as a mean of ratios over three seeds.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reproduction import results
from reproduction.domains import test_domains, training_domains
from reproduction.few_shot import (
    DEBUG,
    NUMBERS,
    Adapter,
    Domain,
    Method,
    Scale,
    best_of,
    by_hypergradient,
    by_joint_training,
    by_kmeans,
    by_reptile,
    by_tuned_decoder,
    episodes,
    rescaled,
    tuned_on_few,
    with_one_weight,
)
from reproduction.frozen import Frozen, codes_at, entropy, nearest_codes
from reproduction.studies import conclude, parser_of

RESULTS = Path(__file__).with_name("results") / "few-shot-codebook.jsonl"
WIN = 0.95  # MSE over that of each baseline, at most
JUDGED = 25  # images of a domain at which that is decided
METHOD = "hypergradient"
ABLATION = "hypergradient, m alone"
BASELINES = (
    "codebook as it is",
    "k-means",
    "one m",
    "joint training",
    "Reptile",
    "decoder tuned on domains",
    "codebook tuned on the n",
    "decoder tuned on the n",
)
VALIDATION = 0.1  # share of training domains that settings are chosen by
FEW = 3  # of those, where a setting is costly to judge

Choices = dict[str, Any]


def choose(
    frozen: Frozen,
    learned_from: Sequence[Domain],
    validation: Sequence[Domain],
    scale: Scale,
    seed: int,
    rates: Mapping[str, float],
) -> tuple[dict[str, dict[int, Method]], Choices]:
    """Learn by every method, and choose its settings by validation domains.

    Args:
        frozen: The network.
        learned_from: Domains that are learned from.
        validation: Others.
        scale: How much is computed.
        seed: Of the episodes.
        rates: Learning rates that are known; those that are missing are chosen.

    Returns:
        Each method for each n, and what was chosen.
    """
    methods: dict[str, dict[int, Method]] = {}
    choices: Choices = {"rates": dict(rates), "settings": {}, "scores": {}}

    def settle(name: str, tried: Mapping[Any, Method]) -> None:
        methods[name] = {}
        for count in NUMBERS:
            setting, reached = best_of(frozen, tried, validation, count, scale)
            methods[name][count] = tried[setting]
            choices["settings"].setdefault(name, {})[str(count)] = [str(value) for value in setting]
            choices["scores"].setdefault(name, {})[str(count)] = reached

    def learn(
        name: str, among: Sequence[float], make: Callable[[float], Mapping[Any, Method]]
    ) -> None:
        found = {}
        for lr in [rates[name]] if name in rates else among:
            tried = make(lr)
            found[lr] = (best_of(frozen, tried, validation, JUDGED, scale)[1], tried)
        lr = min(found, key=lambda lr: found[lr][0])
        choices["rates"][name] = lr
        settle(name, found[lr][1])
        print(f"{name}: lr {lr}, {choices['scores'][name]}", file=sys.stderr, flush=True)

    as_it_is = Adapter(frozen.codebook, torch.tensor(torch.inf))
    settle("codebook as it is", {(): lambda few: as_it_is})
    settle("k-means", by_kmeans(frozen.codebook))
    settle("one m", with_one_weight(frozen.codebook, scale))
    m = float(choices["settings"]["one m"][str(JUDGED)][0])
    weight = m if 0 < m < torch.inf else 30.0

    def anew() -> Iterator[tuple[Domain, Domain]]:  # the same episodes for all
        return episodes(learned_from, scale, seed)

    def hypergradient(lr: float, *, codewords_too: bool = True) -> Mapping[Any, Method]:
        return rescaled(
            by_hypergradient(
                frozen, anew(), scale, lr=lr, weight=weight, codewords_too=codewords_too
            ),
            scale,
        )

    learn(METHOD, scale.rates, hypergradient)
    learn(ABLATION, [0.0], lambda lr: hypergradient(lr, codewords_too=False))
    for name, rule in (("joint training", by_joint_training), ("Reptile", by_reptile)):

        def at(lr: float, rule: Callable[..., Any] = rule) -> Mapping[Any, Method]:
            return with_one_weight(rule(frozen, anew(), scale, lr=lr), scale)

        learn(name, scale.rates, at)
    learn(
        "decoder tuned on domains",
        scale.decoder_rates,
        lambda lr: with_one_weight(
            frozen.codebook, scale, by_tuned_decoder(frozen, anew(), scale, lr=lr)
        ),
    )

    for name, decoder in (("codebook tuned on the n", False), ("decoder tuned on the n", True)):

        def tuned(lr: float, count: int, decoder: bool = decoder) -> Method:
            start = methods["one m"][count]
            return lambda few: tuned_on_few(frozen, few, start(few), scale, lr=lr, decoder=decoder)

        if name not in rates:
            among = scale.decoder_rates if decoder else scale.rates
            tried = {lr: tuned(lr, JUDGED) for lr in among}
            chosen, _ = best_of(frozen, tried, validation[:FEW], JUDGED, scale)
            choices["rates"][name] = chosen
        methods[name] = {n: tuned(choices["rates"][name], n) for n in NUMBERS}
    return methods, choices


def judge(
    frozen: Frozen, methods: Mapping[str, Method], few: Domain, others: Domain, equally: bool
) -> dict[str, Any]:
    """MSE and entropy of every method, and of the hypergradient against each at equal entropy.

    The latter takes most of the time: `equally` says whether to.
    """
    adapters = {name: method(few) for name, method in methods.items()}
    books = {name: adapter.codebook(few.z) for name, adapter in adapters.items()}
    size = len(frozen.codebook)

    @torch.no_grad()
    def mse(name: str, codes: Tensor) -> float:
        parts = [
            (frozen.decode(books[name][c], adapters[name].decoder) - x).square().sum()
            for c, x in zip(codes.split(64), others.x.split(64), strict=True)
        ]
        return float(sum(parts)) / others.x.numel()

    codes = {name: nearest_codes(others.z, book) for name, book in books.items()}
    bits = {name: entropy(found, size) for name, found in codes.items()}
    plain = {name: mse(name, found) for name, found in codes.items()}

    def at(name: str, most: float) -> float:
        if bits[name] <= most:
            return plain[name]
        return mse(name, codes_at(others.z, books[name], most))

    equal = {}
    for name in methods if equally else ():
        if name != METHOD:
            most = min(bits[METHOD], bits[name])
            equal[name] = {"bits": most, METHOD: at(METHOD, most), "mse": at(name, most)}
    return {
        "methods": {name: {"mse": plain[name], "bits": bits[name]} for name in methods},
        "equal": equal,
    }


def study(
    frozen: Frozen,
    training: Mapping[str, Tensor],
    tests: Mapping[str, tuple[Tensor, Tensor]],
    scale: Scale,
    seed: int,
    rates: Mapping[str, float],
) -> Iterator[dict[str, Any]]:
    """Lines of one seed: what was chosen, then one for each test domain, draw and n."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(training), generator=generator).tolist()
    images = list(training.values())
    domains = [Domain(images[i], frozen.embed(images[i])) for i in order]
    held = max(1, round(VALIDATION * len(domains)))
    methods, choices = choose(frozen, domains[held:], domains[:held], scale, seed, rates)
    yield {"seed": seed, "chosen": choices}
    for name, (known, judged) in tests.items():
        known_z, others = frozen.embed(known), Domain(judged, frozen.embed(judged))
        for draw in range(scale.draws):
            order_of = torch.randperm(len(known), generator=generator)
            for count in NUMBERS:
                rows = order_of[:count]
                found = judge(
                    frozen,
                    {method: of[count] for method, of in methods.items()},
                    Domain(known[rows], known_z[rows]),
                    others,
                    count == JUDGED,
                )
                yield {"seed": seed, "domain": name, "draw": draw, "n": count, **found}


def ratios(lines: Sequence[Mapping[str, Any]], count: int) -> dict[str, dict[str, list[float]]]:
    """By domain and baseline, MSE over the baseline's, for every seed.

    At equal entropy where n is JUDGED; elsewhere as they are.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for line in lines:
        if line.get("n") == count:
            own = line["methods"][METHOD]["mse"]
            for name, result in line["methods"].items():
                equal = line["equal"].get(name, {METHOD: own, "mse": result["mse"]})
                of = found.setdefault(line["domain"], {}).setdefault(name, [])
                of.append(equal[METHOD] / equal["mse"])
    return found


def wins(lines: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the threshold is met on every domain, against every baseline."""
    found = ratios(lines, JUDGED)
    return bool(found) and all(
        sum(of[name]) / len(of[name]) <= WIN for of in found.values() for name in BASELINES
    )


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """MSE, bits and ratios as Markdown; below 1 the hypergradient is better."""
    rows = []
    for count in NUMBERS:
        found = ratios(lines, count)
        rows += ["", f"n = {count} | " + " | ".join(found), "|".join(["---"] * (len(found) + 1))]
        for name in (METHOD, ABLATION, *BASELINES):
            cells = []
            for domain, of in found.items():
                those = [
                    line["methods"][name]
                    for line in lines
                    if (line.get("domain"), line.get("n")) == (domain, count)
                ]
                mse, bits = (sum(t[key] for t in those) / len(those) for key in ("mse", "bits"))
                ratio = sum(of[name]) / len(of[name])
                spread = f"{ratio:.3f} ({min(of[name]):.3f} … {max(of[name]):.3f})"
                cells.append(f"{1e3 * mse:.2f}, {bits:.2f}, {spread}")
            rows.append(f"{name} | " + " | ".join(cells))
    return "\n".join(rows)


def main(arguments: list[str] | None = None) -> int:
    """The program; returns its exit code."""
    parser = parser_of("few-shot-codebook", RESULTS)
    parser.add_argument("--scale", default="cpu", choices=("cpu", "debug"))
    options = parser.parse_args(arguments)
    scale = DEBUG if options.scale == "debug" else Scale()
    lines = results.read(options.results)
    for seed, run in enumerate(options.runs):
        done = [line for line in lines if line["seed"] == seed]
        if len(done) == 1 + 5 * scale.draws * len(NUMBERS):
            continue
        known = {(line.get("domain"), line.get("draw"), line.get("n")) for line in done}
        first: dict[str, float] = next(
            (line["chosen"]["rates"] for line in lines if "chosen" in line), {}
        )
        tests = test_domains(100, 100, seed)
        for line in study(
            Frozen.of_run(run), training_domains(140, seed), tests, scale, seed, first
        ):
            if (line.get("domain"), line.get("draw"), line.get("n")) not in known:
                results.append(options.results, line)
                lines.append(line)
    return conclude(table(lines), won=wins(lines))
