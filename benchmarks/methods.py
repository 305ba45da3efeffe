"""Every method's preset trained for some steps: what it reaches, and whether it warns.

    python -m benchmarks.methods [--steps 200] [--only mq-vae] [--seeds 1]

One row a method, in the order of the presets: figures on the test images, mean ± half the range
over the seeds. Short runs say that a method works, not which is best.
"""

import argparse
import contextlib
import io
import tempfile
import warnings
from pathlib import Path

from mqvae.settings import Settings, load_preset, method_names
from mqvae.trainer import begin


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", default="", help="methods whose name holds this")
    options = parser.parse_args()
    names = [name for name in method_names() if options.only in name]
    print(f"{'method':<24}{'MSE e-3':>16}{'perplexity':>16}{'usage':>8}{'ms':>7}  warnings")
    for name in names:
        summaries, heard = [], set()
        for seed in range(options.seeds):
            settings = load_preset(
                "fashion-mnist-demo", {"steps": options.steps, "seed": seed}, method=name
            )
            with (
                tempfile.TemporaryDirectory() as folder,
                warnings.catch_warnings(record=True) as caught,
                contextlib.redirect_stderr(io.StringIO()),
            ):
                warnings.simplefilter("always")
                training = begin(Settings.of(settings), Path(folder) / "run")
                summaries.append(training.fit())
            heard |= {str(w.message) for w in caught} | set(summaries[-1]["warnings"])
        figures = []
        for figure, scale in (("mse", 1e3), ("perplexity", 1.0)):
            values = [s[figure] * scale for s in summaries]
            half = (max(values) - min(values)) / 2
            figures.append(f"{sum(values) / len(values):.2f} ± {half:.2f}")
        last = summaries[-1]
        print(
            f"{name:<24}{figures[0]:>16}{figures[1]:>16}"
            f"{last['usage']:>8.1%}{last['seconds_per_step'] * 1e3:>7.0f}  "
            f"{'; '.join(sorted(heard)) or 'none'}",
            flush=True,
        )


if __name__ == "__main__":
    main()
