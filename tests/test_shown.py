"""What is returned shows itself in a line; runs and tokenizers as a table in a notebook."""

import pytest
import torch
from torch.optim import SGD

import mqvae
from mqvae.config import Settings, load_preset
from mqvae.notebook import html_table
from mqvae.runs import Run
from mqvae.tokenizer import Tokenizer
from mqvae.training import begin

SMALL = {
    "name": "<small>",
    "steps": 2,
    "data": {"batch_size": 50},
    "network": {"init_args": {"width": 4, "residual_blocks": 1}},
    "quantizer": {"init_args": {"num_codes": 8, "dim": 4}},
    "trainer": {"accelerator": "cpu", "loggers": []},
}


def quantized(codes=((0, 1), (1, 5)), **changed):
    given = {
        "z_q": torch.zeros(2, 2, 3),
        "codes": torch.as_tensor(codes, dtype=torch.int64),
        "commitment_loss": torch.tensor(0.123456),
        "codebook_loss": torch.tensor(2.0, requires_grad=True),
    }
    return mqvae.Quantized(**{**given, **changed})


def test_a_line():
    assert repr(quantized()) == (
        "Quantized(z_q=(2, 2, 3) float32, codes=(2, 2) int64, 3 in use, perplexity 2.8, "
        "commitment_loss=0.1235, codebook_loss=2, auxiliary_weight=0)"
    )
    assert "codes=(0,) int64, 0 in use" in repr(quantized(codes=[]))


def test_a_table():
    page = html_table("Run", {"codes": "3 in use"})
    assert "<caption" in page and ">Run</caption>" in page
    assert ">codes</th>" in page and ">3 in use</td>" in page
    assert "&lt;b&gt;" in html_table("<b>", {"<b>": "<b>"})
    assert "<b>" not in html_table("<b>", {"<b>": "<b>"})


@pytest.mark.parametrize("rule", [mqvae.Joint, mqvae.Meta])
def test_a_step(rule):
    network = mqvae.vqvae(1, num_codes=8, dim=4, width=4)
    lower, upper = SGD(network.network_parameters(), 0.1), SGD(network.codebook_parameters(), 0.1)
    x = torch.rand(2, 1, 8, 8)
    step = rule(network, torch.nn.functional.mse_loss, lower=lower, upper=upper).step(x, x)
    assert repr(step).startswith(f"Step(task={step.task.item():.4g}, commitment=")
    assert "output=(2, 1, 8, 8) float32" in repr(step)
    assert ("cosine=" in repr(step)) == (rule is mqvae.Meta)  # None is left out
    assert "NetworkOutput(output=(2, 1, 8, 8) float32, quantized=Quantized(z_q=(2, 2, 2, 4)" in (
        repr(network(x))
    )


def test_what_has_no_numbers_is_shown_too():
    on_meta = quantized(codes=torch.zeros(2, 3, dtype=torch.int64, device="meta"))
    assert "codes=(2, 3) int64 meta, commitment" in repr(on_meta)
    lines = []

    def f(z):
        lines.append(repr(quantized(z_q=z, commitment_loss=z.sum())))
        return z

    torch.func.vmap(f)(torch.zeros(2, 3))
    assert "commitment_loss=() float32" in lines[0]


def test_a_run_and_its_tokenizer(tmp_path):
    training = begin(Settings.of(load_preset("digits-tiny", SMALL)), tmp_path / "run")
    run = Run(tmp_path / "run")
    assert repr(run).endswith("run': name <small>, steps 2, seed 0, metrics none (yet))")
    mse = training.fit()["mse"]
    assert f"mse {mse:.4g}, " in repr(run)
    page = run._repr_html_()
    assert "&lt;small&gt;" in page and f'<td style="text-align:left">{mse:.4g}</td>' in page

    tokenizer = Tokenizer.from_run(tmp_path / "run", device="cpu")
    assert "4 × 4, 48 bits an image" in tokenizer._repr_html_()
