"""Bayesian prediction: draws of h, their mean, and how far they disagree."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import lightning_mip as mip
from lightning_mip.ensemble import Ensemble
from tests.tasks import SMALL, Net, Task, make

X = torch.randn(5, 3, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def model() -> Any:
    return make(h={"z": mip.Normal(0, 1)}, hypernet={**SMALL, "init": 1.0})


def test_each_draw_is_the_network_of_one_h(model: Any) -> None:
    draws = model.predict_ensemble(X, 3, seed=4).draws
    assert draws.shape == (3, 5, 2)
    for step, draw in enumerate(draws):
        plain = mip.materialize(model, model.space.sample(seed=4, step=step))
        torch.testing.assert_close(draw, plain(X).detach())


def test_the_draws_are_a_function_of_the_seed(model: Any) -> None:
    first, again, other = (model.predict_ensemble(X, 3, seed=seed).draws for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_mean_and_variance_are_over_draws(model: Any) -> None:
    predicted = model.predict_ensemble(X, 4)
    torch.testing.assert_close(predicted.mean, predicted.draws.mean(0))
    torch.testing.assert_close(predicted.variance, ((predicted.draws - predicted.mean) ** 2).mean(0))


@pytest.mark.parametrize("class_dim", [-1, 1])
def test_logits_of_classes_become_probabilities(model: Any, class_dim: int) -> None:
    logits, predicted = model.predict_ensemble(X, 4).draws, model.predict_ensemble(X, 4, class_dim=class_dim)
    torch.testing.assert_close(predicted.draws, logits.softmax(-1))
    mean = logits.softmax(-1).mean(0)
    entropy = -(mean * mean.log()).sum(-1)
    of_draws = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean(0)
    torch.testing.assert_close(predicted.entropy, entropy)
    torch.testing.assert_close(predicted.mutual_information, (entropy - of_draws).clamp(min=0))


def test_draws_that_contradict_each_other_share_all_their_entropy_and_unsure_ones_none() -> None:
    opposed = Ensemble(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]), class_dim=-1)
    assert opposed.mutual_information.item() == pytest.approx(math.log(2))
    unsure = Ensemble(torch.full((2, 1, 2), 0.5), class_dim=-1)
    assert unsure.mutual_information.item() == pytest.approx(0, abs=1e-6)
    assert unsure.entropy.item() == pytest.approx(math.log(2))


def test_the_module_keeps_its_mode_its_h_and_its_gradients(model: Any) -> None:
    model.primary.last.eval()
    before = model.h["z"]
    assert not model.predict_ensemble(X, 2).draws.requires_grad
    assert [model.training, model.primary.last.training, model.hypernet.training] == [True, False, True]
    assert torch.equal(model.h["z"], before)
    assert torch.is_grad_enabled()


class Sum(Net):
    """Takes two inputs."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x + y)


class Named(Net):
    """Returns a dict."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {"out": super().forward(x)}


def test_a_tuple_holds_several_inputs() -> None:
    model = make(primary=Sum())
    with model.at(model.space.sample(seed=0, step=0)):
        assert torch.equal(model.predict_ensemble((X, X), 2).draws[0], model(X, X))


@pytest.mark.parametrize(
    ("primary", "arguments", "error", "message"),
    [
        (Net, {"n": 0}, ValueError, "n is 0, expected at least 1: the prediction is a mean over n draws of h."),
        (
            Net,
            {"class_dim": 2},
            ValueError,
            "class_dim is 2, but the output has shape (5, 2); give the dimension of its classes, or None for an output "
            "without classes.",
        ),
        (
            Named,
            {},
            TypeError,
            "predict_ensemble averages tensors, but the network returned dict; take what you need of it yourself: "
            "`with model.at(h): model(x)` for each h drawn by model.space.sample.",
        ),
    ],
)
def test_messages(primary: type[Net], arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    model: Task = make(primary=primary())
    with pytest.raises(error) as caught:
        model.predict_ensemble(X, **arguments)
    assert str(caught.value) == message


def test_numbers_that_are_no_probabilities_have_no_entropy() -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        _ = Ensemble(torch.zeros(2, 3)).mutual_information
    assert str(caught.value) == (
        "class_dim is None, so the predictions are no class probabilities and have no entropy; say where the classes "
        "are: predict_ensemble(x, n, class_dim=-1)."
    )
