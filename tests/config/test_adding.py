"""A quantizer is a file and a line, a method a file; other tests add data sets and metrics."""

import shutil
import sys

import mqvae
from mqvae.cli import main
from mqvae.config import from_arguments, method_names, presets
from mqvae.config.classes import choices, public

QUANTIZER = '''
import torch
from mqvae import VectorQuantizer


class Rounded(VectorQuantizer):
    """Codewords that are multiples of a step.

    Args:
        num_codes: K.
        dim: D.
        step: What they are multiples of.
    """

    def __init__(self, num_codes: int, dim: int, step: float = 0.5) -> None:
        super().__init__(num_codes, dim)
        self.step = step
'''
METHOD = """
title: VQ-VAE with a small weight of the codebook loss
base: vq-vae
update:
  init_args:
    codebook_weight: 0.25
"""


def test_one_file_and_one_name_add_a_quantizer(tmp_path, monkeypatch, capsys):
    (tmp_path / "rounded.py").write_text(QUANTIZER)
    monkeypatch.syspath_prepend(tmp_path)
    from rounded import Rounded  # type: ignore[import-not-found]

    monkeypatch.setattr(mqvae, "Rounded", Rounded, raising=False)  # the line of __init__.pyi
    monkeypatch.setattr(mqvae, "__all__", [*mqvae.__all__, "Rounded"])
    public.cache_clear()
    try:
        assert "Rounded" in choices(mqvae.Quantizer)
        typed = ["digits-tiny", "--quantizer", "Rounded", "--quantizer.step", "0.25"]
        typed += ["--quantizer.num_codes", "16", "--quantizer.dim", "4"]
        settings, _, _ = from_arguments(typed)
        spec = settings.quantizer
        assert spec["class_path"].endswith(".Rounded") and spec["init_args"]["step"] == 0.25
        small = ["--steps", "1", "--data.batch_size", "8", "--network.width", "4"]
        run = str(tmp_path / "run")
        assert main(["train", *typed, *small, "--out", run]) == 0
        assert main(["evaluate", run]) == 0
        assert "perplexity" in capsys.readouterr().out
    finally:
        public.cache_clear()
        sys.modules.pop("rounded")


def test_one_file_adds_a_method(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "methods"
    shutil.copytree(presets.METHODS, folder)
    (folder / "light.yaml").write_text(METHOD)
    monkeypatch.setattr(presets, "METHODS", folder)
    assert "light" in method_names()
    assert main(["methods"]) == 0
    assert "VQ-VAE with a small weight" in capsys.readouterr().out
    for preset in ("digits-tiny", "vectors"):
        update = from_arguments([preset, "--method", "light"])[0].update
        assert update["class_path"] == "mqvae.Joint"
        assert update["init_args"]["codebook_weight"] == 0.25
