"""The Bayesian example on MNIST: strange digits, and the script on a tiny budget."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from examples.bayesian_digits import mnist
from tests.examples.test_bayesian_digits_data import arrays

QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
ON_CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1"]
SMALL = [*QUIET, *ON_CPU, "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"]


def test_auroc_is_the_share_of_pairs_in_the_right_order() -> None:
    familiar, strange = torch.tensor([0.0, 0.5, 2.0]), torch.tensor([1.0, 2.3])
    assert mnist.auroc(familiar, strange) == pytest.approx(5 / 6)
    assert mnist.auroc(familiar, familiar) == pytest.approx(0.5)


def test_auroc_tells_scores_of_any_size_apart() -> None:
    familiar = torch.full((5,), 1e-9, dtype=torch.float64)
    assert mnist.auroc(familiar, 2 * familiar) == 1


def test_strange_digits_are_turned_or_noisy_and_always_the_same() -> None:
    images = torch.zeros(2, 1, 5, 5)
    images[:, 0, 0, 4] = 1
    assert mnist.rotated(images).nonzero()[:, 2:].tolist() == [[0, 0], [0, 0]]
    noisy = mnist.noised(images)
    assert torch.equal(noisy, mnist.noised(images))
    assert 0 <= noisy.min() < noisy.max() <= 1
    assert not torch.equal(noisy[0], noisy[1])


def test_the_script_prints_both_tables_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "mnist.npz", **arrays())
    data = ["--data.root", str(tmp_path), "--data.val_size", "8", "--data.image_size", "8"]
    out = tmp_path / "new" / "mnist.png"
    outcome = mnist.main(["--out", str(out), "--runs", str(tmp_path), "--draws", "3", *data, *SMALL])
    assert out.read_bytes().startswith(b"\x89PNG")
    assert len(outcome.single) == 3
    printed = capsys.readouterr().out
    for text in ("rotated", "noised", "mutual information", "plain network", "accuracy", "NLL", "ECE", str(out)):
        assert text in printed
    for kind in mnist.STRANGE:
        assert f"{outcome.auroc(kind, 'mutual_information'):.4f}" in printed
    assert f"{outcome.plain.nll:.4f}" in printed
