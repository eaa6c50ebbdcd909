"""An h for each sample of a batch, all at once, equals a loop over the samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lightning_mip as mip
from lightning_mip.injection import Injector, the_injector
from lightning_mip.per_sample import run_per_sample
from tests.module_kinds import KINDS, attach, build, tensors

SIZE = 4


def built(network: nn.Module, h: dict[str, Any] | None = None) -> Injector:
    mip.hypernetize(network, h or {"lam": mip.Uniform(0, 1)}, hidden_sizes=(4,), init=0.5)
    network.double()
    injector = the_injector(network)
    injector.hypernet.double()
    return injector


class Convolutional(nn.Module):
    """Convolutions, norms over samples alone, a second input and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, shift: Tensor, power: int = 1) -> dict[str, Any]:
        y = self.norm(self.conv(x)).relu().mean((2, 3)) + shift
        return {"out": self.last(y) ** power, "features": (y,)}


def test_it_equals_a_loop_over_samples_with_gradients() -> None:
    network = Convolutional()
    injector = built(network)
    h = {"lam": torch.linspace(0, 1, SIZE, dtype=torch.float64)}
    x, shift = torch.randn(SIZE, 2, 5, 5, dtype=torch.float64), torch.randn(SIZE, 4, dtype=torch.float64)
    parameters = [*network.parameters(), *injector.hypernet.parameters()]

    together = run_per_sample(injector, h, (x,), {"shift": shift, "power": 2})
    gradients = torch.autograd.grad(together["out"].square().sum() + together["features"][0].sum(), parameters)

    outputs, features = [], []
    for i in range(SIZE):
        with injector.at({"lam": h["lam"][i]}):
            single = network(x[i : i + 1], shift[i : i + 1], power=2)
        outputs.append(single["out"])
        features.append(single["features"][0])
    expected = torch.autograd.grad(torch.cat(outputs).square().sum() + torch.cat(features).sum(), parameters)

    torch.testing.assert_close(together["out"], torch.cat(outputs), rtol=0, atol=1e-10)
    torch.testing.assert_close(together["features"][0], torch.cat(features), rtol=0, atol=1e-10)
    torch.testing.assert_close(gradients, expected, rtol=0, atol=1e-10)


# What torch.vmap has no rule for, and what does not take the samples as the first dimension.
ELSE = {"batch_norm", "lstm", "gru", "attention", "checkpoint", "checkpoint_reentrant", "spectral_norm_hook"}
ELSE |= {"sparse_embedding"}  # its gradient


@pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet implemented the batching rule")
@pytest.mark.parametrize("kind", sorted(KINDS.keys() - ELSE - {"nested_hypernetwork"}))
def test_every_kind_of_network_equals_the_loop(kind: str) -> None:
    network, (x,) = build(kind, torch.float64)
    attach(network).double()
    injector = the_injector(network)
    lam = torch.linspace(0.1, 0.9, len(x), dtype=torch.float64)
    together = tensors(run_per_sample(injector, {"lam": lam}, (x,), {}))
    for i in range(len(x)):
        with injector.at({"lam": lam[i]}):
            single = tensors(network(x[i : i + 1]))
        for all_, one in zip(together, single, strict=True):
            torch.testing.assert_close(all_[i : i + 1], one, rtol=0, atol=1e-10)
    assert all(type(parameter) is nn.Parameter for parameter in network.parameters())


class Averaging(nn.Module):
    """Keeps a mean over the batch, in a new tensor or in place."""

    def __init__(self, in_place: bool = False) -> None:
        super().__init__()
        self.layer, self.in_place = nn.Linear(3, 2), in_place
        self.register_buffer("mean", torch.zeros(2, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        if self.in_place:
            self.mean.add_(y.detach().mean(0))
        else:
            self.mean = self.mean + y.detach().mean(0)
        return y - self.mean


def test_a_buffer_that_the_network_replaces_is_put_back() -> None:
    network = Averaging()
    injector, mean = built(network), network.mean
    with pytest.raises(ValueError, match="replaces its buffer mean"):
        run_per_sample(injector, {"lam": torch.rand(SIZE)}, (torch.ones(4, 3).double(),), {})
    assert network.mean is mean
    with injector.at({"lam": 0.3}):
        network(torch.ones(4, 3).double())


def test_what_vmap_cannot_run_says_so_and_what_to_do_instead() -> None:
    message = (
        "torch.vmap, by which per_sample=True runs Averaging, failed on it for the reason above; use draws_per_batch "
        "instead of per_sample."
    )
    with pytest.raises(RuntimeError) as caught:
        running(Averaging(in_place=True), torch.ones(4, 3).double())
    assert str(caught.value) == message
    assert isinstance(caught.value.__cause__, RuntimeError)


class Returning(nn.Module):
    """Returns its output with something beside it."""

    def __init__(self, beside: Any) -> None:
        super().__init__()
        self.layer, self.beside = nn.Linear(3, 2), beside

    def forward(self, x: Tensor) -> Any:
        return {"output": self.layer(x), "beside": (self.beside, x)}


@pytest.mark.parametrize("beside", [None, 0.5, 3, True, "logits"])
def test_a_constant_among_the_outputs_is_returned_once(beside: Any) -> None:
    x = torch.randn(SIZE, 3, dtype=torch.float64)
    torch.manual_seed(0)
    found = running(Returning(beside), x)
    torch.manual_seed(0)
    expected = running(Returning(torch.ones(1)), x)
    assert list(found) == ["output", "beside"]
    assert found["beside"][0] is beside
    assert torch.equal(found["beside"][1], x)
    assert torch.equal(found["output"], expected["output"])


def test_another_object_among_the_outputs_is_named_as_what_vmap_cannot_run() -> None:
    message = (
        "torch.vmap, by which per_sample=True runs Returning, failed on it for the reason above; use draws_per_batch "
        "instead of per_sample."
    )
    with pytest.raises(RuntimeError) as caught:
        running(Returning(object()), torch.ones(SIZE, 3).double())
    assert str(caught.value) == message
    assert isinstance(caught.value.__cause__, ValueError)


def test_an_error_of_the_networks_own_stays_what_it_is() -> None:
    class Refusing(Returning):
        def forward(self, x: Tensor) -> Any:
            raise ValueError("not this one")

    with pytest.raises(ValueError, match=r"^not this one$"):
        running(Refusing(None), torch.ones(SIZE, 3).double())


@pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet implemented the batching rule")
def test_a_transformer_in_evaluation_is_trained_off_its_fast_path() -> None:
    network = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True).double().eval()
    injector = built(network)
    lam, x = torch.rand(SIZE), torch.randn(SIZE, 5, 4, dtype=torch.float64)
    together = run_per_sample(injector, {"lam": lam}, (x,), {})
    parameters = [*network.parameters(), *injector.hypernet.parameters()]
    found = torch.autograd.grad(together.square().sum(), parameters)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(SIZE):
        with injector.at({"lam": lam[i]}):
            total = total + network(x[i : i + 1]).square().sum()
    torch.testing.assert_close(found, torch.autograd.grad(total, parameters), rtol=0, atol=1e-10)
    assert torch.backends.mha.get_fastpath_enabled()


def test_one_sample_keeps_its_batch_dimension() -> None:
    network = nn.Linear(3, 2)
    output = run_per_sample(built(network), {"lam": torch.tensor([0.3])}, (torch.ones(1, 3).double(),), {})
    assert output.shape == (1, 2)


def test_several_components_of_several_kinds() -> None:
    network = nn.Linear(3, 2)
    injector = built(network, {"kind": mip.Categorical(3), "weights": mip.Simplex(2)})
    h = injector.hypernet.space.sample(seed=0, step=0, n=SIZE)
    x = torch.randn(SIZE, 3, dtype=torch.float64)
    together = run_per_sample(injector, h, (x,), {})
    for i in range(SIZE):
        with injector.at({name: value[i] for name, value in h.items()}):
            torch.testing.assert_close(together[i], network(x[i]), rtol=0, atol=1e-10)


def test_generated_and_own_weights_stay_as_they_were() -> None:
    network = nn.Linear(3, 2)
    injector = built(network)
    x = torch.ones(SIZE, 3).double()
    with injector.at({"lam": 0.2}):
        before = network(x)
        run_per_sample(injector, {"lam": torch.rand(SIZE)}, (x,), {})
        assert torch.equal(network(x), before)
    assert "weight" not in vars(network)


def test_dropout_differs_between_samples() -> None:
    network = nn.Sequential(nn.Linear(3, 64), nn.Dropout(0.5))
    injector = built(network)
    x = torch.ones(2, 3).double()
    output = run_per_sample(injector, {"lam": torch.full((2,), 0.5)}, (x,), {})
    assert not torch.equal(output[0] == 0, output[1] == 0)


def test_batch_norm_is_fine_with_its_running_statistics() -> None:
    with pytest.warns(UserWarning, match="Norm layers keep running statistics"):
        injector = built(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)))
    network = injector.root.eval()
    x, lam = torch.randn(SIZE, 3).double(), torch.rand(SIZE).double()
    together = run_per_sample(injector, {"lam": lam}, (x,), {})
    for i in range(SIZE):
        with injector.at({"lam": lam[i]}):
            torch.testing.assert_close(together[i : i + 1], network(x[i : i + 1]), rtol=0, atol=1e-10)


def running(network: nn.Module, *inputs: Tensor, **keywords: Tensor) -> Any:
    return run_per_sample(built(network), {"lam": torch.rand(SIZE)}, inputs, keywords)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (
            lambda: running(nn.Linear(3, 2), torch.ones(3, 3)),
            "per_sample=True: an input has shape (3, 3), expected 4 samples, as h has.",
        ),
        (
            lambda: running(Convolutional(), torch.ones(4, 2, 5, 5), shift=torch.tensor(1.0)),
            "per_sample=True: an input has shape (), expected 4 samples, as h has.",
        ),
        (
            lambda: running(
                nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, track_running_stats=False)).eval(), torch.ones(4, 3)
            ),
            "per_sample=True runs each sample alone, but the BatchNorm layer 1 takes statistics over the batch; use "
            "GroupNorm or LayerNorm, or draws_per_batch instead of per_sample.",
        ),
        (
            lambda: running(nn.Sequential(nn.LSTM(3, 2)), torch.ones(4, 3)),
            "per_sample=True cannot run the recurrent layer 0, as torch.vmap has no rule for it; use draws_per_batch "
            "instead of per_sample.",
        ),
        (
            lambda: running(nn.Sequential(nn.Embedding(3, 2, sparse=True)), torch.ones(4, dtype=torch.long)),
            "per_sample=True cannot train the sparse embedding layer 0, as torch.vmap has no rule for its gradient; "
            "build it with sparse=False, or use draws_per_batch instead of per_sample.",
        ),
        (
            lambda: running(Averaging(), torch.ones(4, 3).double()),
            "per_sample=True runs each sample alone, but the network replaces its buffer mean when it runs, which "
            "cannot hold a value for every sample; use draws_per_batch instead of per_sample.",
        ),
    ],
)
def test_messages(act: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        act()
    assert str(caught.value) == message
