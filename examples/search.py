"""A search by Optuna: the codebook's learning rate with the lowest validation loss.

Each trial is a plain run in a folder of its own, for `mqvae report` and all other commands; one
that falls behind the others' median is stopped.
"""

import argparse
from pathlib import Path

import optuna

from mqvae.config import Settings, load_preset
from mqvae.training import Training, TrainingFailed, begin


def search(preset: str, trials: int, steps: int | None, out: Path) -> optuna.Study:
    """Trials of a preset, or of a YAML file by its path."""

    def value(trial: optuna.Trial) -> float:
        chosen = {
            "name": f"trial {trial.number}",
            "optimizer": {"codebook_lr": trial.suggest_float("codebook_lr", 1e-3, 1.0, log=True)},
            **({"steps": steps} if steps else {}),
        }
        settings = Settings.of(load_preset(preset, chosen))

        def look(training: Training) -> None:
            if training.step % max(1, settings.steps // 10) == 0:
                trial.report(training.validation_loss(), training.step)
                if trial.should_prune():
                    raise optuna.TrialPruned

        training = begin(settings, out / f"trial-{trial.number}", overwrite=True)
        return training.fit(after_step=look)["validation"]

    study = optuna.create_study(
        direction="minimize",
        sampler=optuna.samplers.TPESampler(seed=0),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3),
    )
    study.optimize(value, n_trials=trials, catch=TrainingFailed)  # at too high a rate
    return study


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset", nargs="?", default="digits-tiny")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--steps", type=int, help="updates of a trial, if not the preset's")
    parser.add_argument("--out", type=Path, default=Path("runs/search"))
    options = parser.parse_args()
    study = search(options.preset, options.trials, options.steps, options.out)
    best = study.best_trial
    print(f"trial {best.number}: optimizer.codebook_lr {best.params['codebook_lr']:.2e}")
    print(f"next: mqvae report {options.out}/trial-* --out report.html")
