"""Functions become commands."""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from mqvae.cli.parser import parser_of, text_of
from mqvae.cli.train import print_figures, quiet, train
from mqvae.extras import ExtraMissing
from mqvae.spelling import nearest

COMMANDS = {
    "train": "train a network, or go on with a run that stopped",
    "evaluate": "measure a run on its test images",
    "diagnose": "what limits a run, and what to try",
    "encode": "images to codes",
    "decode": "codes back to images",
    "export": "encoder and decoder as programs: torch.export and ONNX",
    "import": "a tokenizer of taming-transformers or LlamaGen to a run",
    "data": "real photographs, cut to train on",
    "weights": "the trained networks that some figures are taken with",
    "prior": "train a PixelCNN over the codes of a run",
    "sample": "draw images from a run's prior",
    "report": "runs to one HTML page",
    "reproduce": "the paper's tables and figures, run again",
    "doctor": "what is here, what is missing, and how to get it",
    "bench": "what steps, the quantizer and whole runs cost on this machine",
    "completion": "what bash and zsh complete commands and options with",
}

USAGE = """usage: mqvae COMMAND …

Trains vector-quantized networks whose codebook is learned by hypergradient.

commands:
{commands}

`mqvae COMMAND --help` tells more of each. Every command takes --debug, which shows
the traceback of an error.

first steps:
  mqvae train digits-tiny --out runs/first    # seconds, on data that is already there
  mqvae train fashion-mnist-demo --update Joint --optimizer.codebook_lr 3e-4
  mqvae report runs/* --out report.html
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The program `mqvae`; returns its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        lines = [f"  {name:<11} {text}" for name, text in COMMANDS.items()]
        print(USAGE.format(commands="\n".join(lines)), end="")
        return 0 if arguments else 2
    name, *rest = arguments
    if name == "--version":
        print(f"mqvae {_version()}")
        return 0
    if name not in COMMANDS:
        return _fail(
            f"there is no command '{name}'.{nearest(name, COMMANDS)} Commands: "
            f"{', '.join(COMMANDS)}."
        )
    debug = "--debug" in rest
    rest = [a for a in rest if a != "--debug"]
    command: Callable[[list[str]], int | None] = globals()[f"_{name}"]
    try:
        return command(rest) or 0
    except SystemExit as leaving:
        return int(leaving.code or 0)
    except (ValueError, OSError, ExtraMissing) as error:
        if debug:
            traceback.print_exc()
        # What does not fit does not fit in any process of a machine: the first one says it.
        return _fail(text_of(error)) if os.environ.get("LOCAL_RANK", "0") == "0" else 2
    except KeyboardInterrupt:
        print("mqvae: stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        if _is_a_failed_training(error):
            print(f"mqvae: {error}", file=sys.stderr)
        elif not debug:
            print(
                f"mqvae: unexpected {type(error).__name__}: {error}\n"
                "This looks like a fault of mqvae; --debug shows where it happened.",
                file=sys.stderr,
            )
        return 1


# -- commands ------------------------------------------------------------------------------------


def _train(arguments: list[str]) -> int:
    return train(arguments)


def _evaluate(arguments: list[str]) -> int:
    parser = parser_of("evaluate", "Measure a run on its test images; writes evaluation.json.")
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    parser.add_argument("--split", default="test", choices=("test", "train"))
    parser.add_argument("--checkpoint", default="last", choices=("last", "best"))
    parser.add_argument(
        "--devices", type=int, default=1, metavar="N", help="processes that share the images"
    )
    parser.add_argument(
        "--metrics",
        default="",
        metavar="NAME,…",
        help="further figures of images: ssim, lpips, fid, inception_score, frechet_vgg16, "
        "class_score, or all that can be had; the task's own are always measured",
    )
    parser.add_argument(
        "--classifier",
        metavar="RUN",
        help="what class_score is taken with: a run of `mqvae train classifier` on the same images",
    )
    options = parser.parse_args(arguments)
    names = [name.strip() for name in options.metrics.split(",") if name.strip()]
    if options.classifier is not None and not {"class_score", "all"} & set(names):
        raise ValueError(
            "--classifier is what class_score is taken with: add --metrics class_score, or leave "
            "it out."
        )
    from functools import partial

    from mqvae.classifier import classifier_of
    from mqvae.metrics import CODES, evaluate
    from mqvae.metrics.registry import Maker, further_figures
    from mqvae.metrics.score import ClassScore
    from mqvae.settings import Trainer
    from mqvae.tokenizer import Tokenizer
    from mqvae.trainer import Processes, device_name, load_split, write_evaluation

    quiet()
    processes = Processes(Trainer(devices=options.devices))
    tokenizer = Tokenizer.from_run(
        options.run, checkpoint=options.checkpoint, device=processes.device
    )
    images = load_split(tokenizer.settings.data, options.split)
    makers: dict[str, Maker] = {}
    if options.classifier is not None:
        classifier = classifier_of(
            options.classifier, tokenizer.settings.data, device=processes.device
        )
        makers["class_score"] = partial(ClassScore, classifier=classifier)
    further = further_figures(
        names,
        [*tokenizer.task.figures, *CODES],
        tokenizer.task,
        images,
        device=processes.device,
        makers=makers,
        left_out=_remark if processes.first else str,
    )
    result = evaluate(
        tokenizer.network,
        tokenizer.task,
        images,
        device=processes.device,
        together=True,
        further=further,
    )
    if not processes.first:
        return 0
    content = write_evaluation(
        tokenizer.run,
        "evaluation.json",
        result,
        {
            "checkpoint": options.checkpoint,
            "step": tokenizer.step,
            "device": device_name(processes.device, processes.count),
        },
    )
    print_figures(content, content["figures"])
    print(f"written: {tokenizer.run.folder / 'evaluation.json'}")
    return 0


def _diagnose(arguments: list[str]) -> int:
    from mqvae.cli.diagnose import diagnose

    return diagnose(arguments)


def _encode(arguments: list[str]) -> int:
    from mqvae.cli.codes import encode

    return encode(arguments)


def _decode(arguments: list[str]) -> int:
    from mqvae.cli.codes import decode

    return decode(arguments)


def _export(arguments: list[str]) -> int:
    from mqvae.cli.export import export

    return export(arguments)


def _import(arguments: list[str]) -> int:
    from mqvae.cli.importing import import_

    return import_(arguments)


def _data(arguments: list[str]) -> int:
    from mqvae.cli.data import data

    return data(arguments)


def _weights(arguments: list[str]) -> int:
    from mqvae.cli.weights import weights

    return weights(arguments)


def _prior(arguments: list[str]) -> int:
    from mqvae.cli.prior import prior

    return prior(arguments)


def _sample(arguments: list[str]) -> int:
    from mqvae.cli.prior import sample

    return sample(arguments)


def _report(arguments: list[str]) -> int:
    parser = parser_of("report", "Runs to one self-contained HTML page.")
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run's folder, finished or not")
    parser.add_argument(
        "--out", default="report.html", metavar="FILE.html", help="report.html if not given"
    )
    parser.add_argument("--title")
    parser.add_argument(
        "--watch", action="store_true", help="write the page again while the runs train"
    )
    options = parser.parse_args(arguments)
    from mqvae.report import watch, write_report

    given, out = [Path(run) for run in options.runs], Path(options.out)
    # `runs/*` takes what lies beside the runs, too: a page, sweep.json.
    runs = [run for run in given if not run.is_file()] or given
    if options.watch:
        print(f"{out}: written again until the runs have finished; Ctrl-C ends it", file=sys.stderr)
    print((watch if options.watch else write_report)(runs, out, title=options.title))
    return 0


def _reproduce(arguments: list[str]) -> int:
    from mqvae.cli.reproduce import reproduce

    return reproduce(arguments)


def _doctor(arguments: list[str]) -> int:
    from mqvae.cli.doctor import doctor

    return doctor(arguments)


def _completion(arguments: list[str]) -> int:
    from mqvae.cli.completion import completion

    return completion(arguments)


def _bench(arguments: list[str]) -> int:
    from mqvae.bench import OF_A_PRESET, SECTIONS, measure

    parser = parser_of(
        "bench",
        "Measures on this machine; prints tables and writes them, with plots, to\n"
        "DIR/performance.md and DIR/performance/.",
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "\n".join(
        ["sections:", *(f"  {name:<10} {words}" for name, words in SECTIONS.items())]
    )
    parser.add_argument(
        "sections",
        metavar="SECTION",
        nargs="*",
        help="what to measure; without any: all of them",
    )
    parser.add_argument("--out", default="bench", metavar="DIR", help="folder, if not bench")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, metavar="N", help="turns of each contestant")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name holds this")
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help=f"whose steps {' and '.join(OF_A_PRESET)} measure, or a YAML file; the demo's if not "
        "given",
    )
    options = parser.parse_args(arguments)
    if unknown := [s for s in options.sections if s not in SECTIONS]:
        raise ValueError(
            f"there is no section '{unknown[0]}'.{nearest(unknown[0], SECTIONS)} Sections: "
            f"{', '.join(SECTIONS)}."
        )
    if options.rounds is not None and options.rounds < 2:
        raise ValueError(f"--rounds must be 2 or more, got {options.rounds}: one has no spread.")
    out = Path(options.out)
    if out.is_file():
        raise ValueError(f"{out} is a file: --out takes a folder.")
    quiet()
    everything = [s for s in SECTIONS if options.device == "cpu" or s != "processes"]
    for section in options.sections or everything:
        for table in measure(
            section,
            out,
            device=options.device,
            rounds=options.rounds,
            only=options.only,
            preset=options.preset,
        ):
            print(table.text(), end="\n\n", flush=True)
    print(out / "performance.md")
    return 0


# -- helpers -------------------------------------------------------------------------------------


def _is_a_failed_training(error: Exception) -> bool:
    # Asked without an import: most commands never load the trainer.
    return any(kind.__name__ == "TrainingFailed" for kind in type(error).__mro__)


def _remark(text: str) -> None:
    print(f"mqvae: {text}", file=sys.stderr)


def _fail(message: str) -> int:
    print(f"mqvae: error: {message}", file=sys.stderr)
    return 2


def _version() -> str:
    from importlib.metadata import version

    return version("mqvae")
