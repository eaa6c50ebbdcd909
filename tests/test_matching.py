"""Update matching: with the hypernetwork the primary trains at the learning rate that it has as a plain network."""

from __future__ import annotations

import copy
import io
from typing import Any

import lightning as L
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Size, Tensor, nn

import lightning_mip as mip
from lightning_mip.matching import SHARE, family_of, matched_scale
from tests.strategies import law

LAM = mip.HSpace({"lam": mip.Uniform(0, 1)})
SPACES = {
    "one": LAM,
    "eight": mip.HSpace({f"x{k}": mip.Normal(0, 1) for k in range(8)}),
    "mixed": mip.HSpace({"task": mip.Categorical(3), "weights": mip.Simplex(2), "lr": mip.LogUniform(1e-3, 1)}),
}
SHAPES = {"weight": Size([6, 5]), "bias": Size([6])}
HEADS = {"full": "full", "low rank": mip.LowRank(1), "chunked": mip.Chunked(9, embedding=2)}


def make(space: mip.HSpace = LAM, seed: int = 0, **arguments: Any) -> mip.HyperNetwork:
    torch.manual_seed(seed)
    return mip.HyperNetwork(space, SHAPES, **arguments).double()


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


def moved(hyper: mip.HyperNetwork, optimizer: torch.optim.Optimizer, h: Any) -> tuple[Tensor, Tensor]:
    """By how much one step moves delta(h), and the gradient it follows; the trunk and the gain are held."""
    hyper.trunk.requires_grad_(False)
    hyper.scaling.requires_grad_(False)
    hyper.match(optimizer)
    before = flat(hyper(h))
    gradient = torch.randn(len(before), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    optimizer.zero_grad()
    (before * gradient).sum().backward()
    optimizer.step()
    return (flat(hyper(h)) - before).detach(), gradient


@law
@given(
    space=st.sampled_from(list(SPACES)),
    widths=st.lists(st.integers(4, 64), min_size=1, max_size=4),
    seed=st.integers(0, 100),
    lr=st.sampled_from([1e-1, 1e-4]),
)
def test_a_step_of_adam_moves_each_weight_by_the_same_share_of_the_learning_rate_for_any_trunk_and_space(
    space: str, widths: list[int], seed: int, lr: float
) -> None:
    hyper = make(SPACES[space], seed, hidden_sizes=widths)
    h = SPACES[space].sample(seed=seed, step=0)
    change, gradient = moved(hyper, torch.optim.Adam(hyper.parameters(), lr), h)
    assert torch.equal(change.sign(), -gradient.sign())
    shares = change.abs() / lr
    assert shares.max() - shares.min() < 1e-2 * shares.max()
    # The scale is for the mean over h; features of one h may be spread over more or fewer units.
    assert 0.4 * SHARE < float(shares.mean()) < 2.5 * SHARE


@law
@given(
    space=st.sampled_from(list(SPACES)),
    widths=st.lists(st.integers(1, 64), min_size=1, max_size=4),
    seed=st.integers(0, 100),
)
def test_a_step_of_sgd_moves_each_weight_by_a_share_of_the_plain_step_for_any_trunk_and_space(
    space: str, widths: list[int], seed: int
) -> None:
    hyper = make(SPACES[space], seed, hidden_sizes=widths)
    change, gradient = moved(hyper, torch.optim.SGD(hyper.parameters(), 0.1), SPACES[space].sample(seed=seed, step=0))
    # Features that are almost all zero are left small.
    if hyper(SPACES[space].center())["weight"].any():
        torch.testing.assert_close(change, -0.1 * SHARE * gradient, rtol=5e-2, atol=1e-9)


@torch.no_grad()
def test_the_mean_share_over_h_is_exact_for_adam() -> None:
    for space in SPACES.values():
        hyper = make(space, hidden_sizes=(16, 16))
        draws = space.sample(seed=0, step=0, n=64)
        features = hyper.trunk(hyper.encode(draws).double())
        share = torch.nn.functional.rms_norm(features, (16,), eps=1e-6).mul(hyper.scale).abs().sum(1).mean()
        assert float(share) == pytest.approx(SHARE, rel=1e-5)


@pytest.mark.parametrize("width", [1, 2, 16, 1000])
def test_features_of_one_active_unit_or_none_have_a_scale_too(width: int) -> None:
    one_hot, zero = torch.eye(width)[:1], torch.zeros(1, width)
    assert matched_scale(zero, "adam") == pytest.approx(matched_scale(one_hot, "adam"), rel=1e-4)
    assert matched_scale(zero, "sgd") == matched_scale(one_hot, "sgd") == pytest.approx((SHARE / width) ** 0.5)


@torch.no_grad()
def test_the_size_of_the_features_is_the_same_for_every_h_and_all_through_training() -> None:
    hyper = make(hidden_sizes=(16, 8))
    for parameter in hyper.trunk.parameters():
        parameter.mul_(3)
    features = [hyper._features(hyper.encode({"lam": lam}).double()) for lam in (0.0, 0.3, 1.0)]
    for each in features:
        assert float(each.norm()) == pytest.approx(hyper.scale * 8**0.5, rel=1e-4)


@pytest.mark.parametrize(("wanted", "grows"), [(1.0, True), (-1.0, False)])
@pytest.mark.parametrize(("kind", "pace"), [(torch.optim.Adam, 10), (torch.optim.SGD, 2)])
def test_the_gain_grows_where_the_change_is_wanted_and_shrinks_where_it_is_not(
    wanted: float, grows: bool, kind: type[torch.optim.Optimizer], pace: float
) -> None:
    hyper = make(hidden_sizes=(8, 4))
    optimizer = kind([hyper.scaling.log_gain], 1e-3)
    hyper.match(optimizer)
    before = flat(hyper({"lam": 0.3})).detach()
    assert hyper.scaling.gain == 1
    (-wanted * before * flat(hyper({"lam": 0.3}))).sum().backward()
    size = pace * float(before.square().sum())  # of the gradient
    optimizer.step()
    step = 1e-3 * pace * (1 if kind is torch.optim.Adam else size)
    assert float(hyper.scaling.gain.log().detach()) == pytest.approx(wanted * step, rel=1e-5)
    assert (flat(hyper({"lam": 0.3})).norm() > before.norm()) == grows


@torch.no_grad()
@pytest.mark.parametrize(("kind", "limit"), [(torch.optim.Adam, 4.0), (torch.optim.SGD, 1.25)])
def test_the_gain_is_bounded_whatever_an_optimizer_makes_of_it(kind: Any, limit: float) -> None:
    hyper = make(hidden_sizes=(8, 4))
    hyper.match(kind(hyper.parameters(), 0.1))
    for log_gain, gain in ((1e6, limit), (-1e6, -limit)):
        hyper.scaling.log_gain.fill_(log_gain)
        assert float(hyper.scaling.gain.log()) == pytest.approx(gain)


def test_with_sgd_the_hypernetwork_never_moves_theta_four_times_as_far_as_theta0_moves() -> None:
    hyper = make(hidden_sizes=(8, 4))
    optimizer = torch.optim.SGD(hyper.parameters(), 0.1)
    hyper.match(optimizer)
    with torch.no_grad():
        hyper.scaling.log_gain.fill_(1e6)
    change, gradient = moved(hyper, optimizer, {"lam": 0.3})
    assert 3 < float((change / gradient).mean()) / -0.1 < 4


@pytest.mark.parametrize("log_gain", [0.1, 1e6, -1e6], ids=["within", "above", "below"])
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_matching_an_optimizer_changes_nothing_that_is_generated(head: Any, log_gain: float) -> None:
    hyper = make(head=head)
    with torch.no_grad():
        hyper.scaling.log_gain.fill_(log_gain)
    before, scale = flat(hyper({"lam": 0.3})), hyper.scale
    hyper.match(torch.optim.SGD(hyper.parameters(), 0.1))
    assert hyper.family == "sgd"
    assert hyper.scale > 1.5 * scale
    torch.testing.assert_close(flat(hyper({"lam": 0.3})), before, rtol=1e-6, atol=0)
    hyper.match(torch.optim.Adam(hyper.parameters()))
    assert hyper.scale == pytest.approx(scale)
    assert abs(float(hyper.scaling.gain.detach().log())) < 1.25
    torch.testing.assert_close(flat(hyper({"lam": 0.3})), before, rtol=1e-6, atol=0)


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_the_published_form_is_left_as_it_is(head: Any) -> None:
    hyper = make(head=head, scale="paper")
    before = copy.deepcopy(hyper.state_dict())
    hyper.match(torch.optim.SGD(hyper.parameters(), 0.1))
    for name, value in hyper.state_dict().items():
        assert torch.equal(value, before[name]) if isinstance(value, Tensor) else value == before[name], name


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_a_checkpoint_carries_the_match(head: Any) -> None:
    trained, resumed = make(head=head), make(head=head, seed=1)
    trained.match(torch.optim.SGD(trained.parameters(), 0.1))
    with torch.no_grad():
        trained.trunk[0].weight.add_(1)
        trained.scaling.log_gain.fill_(0.2)
    buffer = io.BytesIO()
    torch.save(trained.state_dict(), buffer)
    buffer.seek(0)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    resumed.match(torch.optim.SGD(resumed.parameters(), 0.1))
    assert torch.equal(flat(resumed({"lam": 0.3})), flat(trained({"lam": 0.3})))
    assert resumed.scale == trained.scale


TRUNKS: dict[str, dict[str, Any]] = {
    "default": {},
    "weight norm": {"norm": "weight"},
    "one layer": {"hidden_sizes": (3,)},
    "deep": {"hidden_sizes": (8, 8, 8, 8), "activation": nn.ReLU, "dropout": 0.0},
    "linear": {"hidden_sizes": (6, 4), "activation": nn.Identity},
    "learned slope": {"activation": nn.PReLU},
    "dropout": {"dropout": 0.5},
}
OTHERS: dict[str, dict[str, Any]] = {
    "not homogeneous": {"activation": nn.Tanh},
    "layer norm": {"norm": "layer"},
    "batch norm": {"norm": "batch"},
    "of one's own": {"trunk": nn.Sequential(nn.Linear(2, 3), nn.ReLU())},
    "no sequence": {"trunk": nn.Linear(2, 3)},
}


def with_biases(seed: int = 0, **arguments: Any) -> mip.HyperNetwork:
    """As after some training, ready for several h."""
    hyper = make(seed=seed, **arguments).eval()
    with torch.no_grad():
        for name, parameter in hyper.trunk.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    return hyper


def gradients(hyper: mip.HyperNetwork) -> dict[str, Tensor]:
    """Of a loss of what is generated."""
    hyper.zero_grad()
    generated = flat(hyper({"lam": torch.tensor([0.1, 0.5, 0.9])}))
    (generated * torch.arange(float(len(generated)))).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in hyper.trunk.named_parameters()}


def of_sgd(hyper: mip.HyperNetwork) -> torch.optim.Optimizer:
    return torch.optim.SGD(hyper.parameters(), 0.1)


@pytest.mark.parametrize("arguments", TRUNKS.values(), ids=TRUNKS)
def test_sgd_turns_the_trunk_sixteen_times_more_slowly_and_what_is_generated_stays(arguments: dict[str, Any]) -> None:
    hyper = with_biases(**arguments)
    hs = {"lam": torch.linspace(0, 1, 50)}
    before, weights, slopes = flat(hyper(hs)), copy.deepcopy(hyper.trunk.state_dict()), gradients(hyper)
    hyper.match(of_sgd(hyper))
    torch.testing.assert_close(flat(hyper(hs)), before, rtol=1e-12, atol=1e-14)
    layers = [name for name, module in hyper.trunk.named_modules() if isinstance(module, nn.Linear)]
    for name, slope in gradients(hyper).items():
        layer, _, kind = name.partition(".")
        # A step relative to a weight is the gradient by the weight: a bias of layer l is divided by 4 to the l, twice.
        factor = 1.0 if layer not in layers else 4.0 ** (layers.index(layer) + 1 if kind == "bias" else 1)
        torch.testing.assert_close(slope, slopes[name] / factor, rtol=1e-9, atol=1e-12)
        assert torch.equal(hyper.trunk.state_dict()[name], weights[name] * factor)
    hyper.match(torch.optim.Adam(hyper.parameters()))
    assert all(torch.equal(value, weights[name]) for name, value in hyper.trunk.state_dict().items())
    torch.testing.assert_close(flat(hyper(hs)), before, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("arguments", OTHERS.values(), ids=OTHERS)
def test_a_trunk_that_would_compute_something_else_with_larger_weights_is_left_alone(arguments: dict[str, Any]) -> None:
    hyper = with_biases(**arguments)
    before, weights = flat(hyper({"lam": torch.tensor([0.2, 0.7])})), copy.deepcopy(hyper.trunk.state_dict())
    hyper.match(of_sgd(hyper))
    assert all(torch.equal(value, weights[name]) for name, value in hyper.trunk.state_dict().items())
    torch.testing.assert_close(flat(hyper({"lam": torch.tensor([0.2, 0.7])})), before, rtol=1e-12, atol=1e-14)


@torch.no_grad()
def test_a_trunk_of_many_layers_does_not_overflow_and_returns_to_what_it_was() -> None:
    hyper = make(hidden_sizes=(8,) * 40)
    before, weights = flat(hyper({"lam": 0.3})), copy.deepcopy(hyper.trunk.state_dict())
    hyper.match(of_sgd(hyper))
    assert hyper.trunk(hyper.encode({"lam": 0.3}).double()[None]).abs().max() < 4**6 * 10
    torch.testing.assert_close(flat(hyper({"lam": 0.3})), before, rtol=1e-12, atol=0)
    hyper.match(torch.optim.Adam(hyper.parameters()))
    assert all(torch.equal(value, weights[name]) for name, value in hyper.trunk.state_dict().items())


@pytest.mark.parametrize("arguments", TRUNKS.values(), ids=TRUNKS)
def test_a_checkpoint_carries_the_size_of_the_trunk(arguments: dict[str, Any]) -> None:
    trained, resumed = with_biases(**arguments), with_biases(seed=1, **arguments)
    weights = copy.deepcopy(trained.trunk.state_dict())
    trained.match(of_sgd(trained))
    resumed.load_state_dict(trained.state_dict())
    resumed.match(of_sgd(resumed))  # is no second one
    assert resumed.family == "sgd"
    assert torch.equal(flat(resumed({"lam": 0.3})), flat(trained({"lam": 0.3})))
    resumed.match(torch.optim.Adam(resumed.parameters()))
    assert all(torch.equal(value, weights[name]) for name, value in resumed.trunk.state_dict().items())
    copied = copy.deepcopy(trained)
    assert torch.equal(flat(copied({"lam": 0.3})), flat(trained({"lam": 0.3})))


OPTIMIZERS = {
    "sgd": [torch.optim.SGD, torch.optim.ASGD, torch.optim.LBFGS],
    "adam": [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.NAdam],
}


@pytest.mark.parametrize(
    ("family", "optimizer"), [(family, each) for family, found in OPTIMIZERS.items() for each in found]
)
def test_the_family_is_read_from_the_optimizer(family: str, optimizer: type[torch.optim.Optimizer]) -> None:
    assert family_of(optimizer([nn.Parameter(torch.zeros(1))], lr=0.1)) == family  # type: ignore[call-arg]


ABLATIONS = {"no encoding": {"encoding": "none"}, "pair": {"encoding": "z|1-z"}, "no theta0": {"residual": False}}


@pytest.mark.parametrize("arguments", [{"scale": "paper"}, *ABLATIONS.values()], ids=["paper", *ABLATIONS])
def test_the_published_scale_and_its_ablations_leave_the_features_as_they_are(arguments: dict[str, Any]) -> None:
    hyper = make(**arguments)
    assert hyper.scaling is None
    encoded = hyper.encode({"lam": 0.3}).double()
    assert torch.equal(hyper._features(encoded), hyper.trunk(encoded[None]))
    hyper.match(torch.optim.SGD(hyper.parameters(), 0.1))
    assert hyper.scale == 1


def test_an_optimizer_without_the_hypernetwork_is_refused() -> None:
    hyper, net = make(), nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"^optimizer is") as caught:
        hyper.match(torch.optim.SGD(net.parameters(), 0.1))
    assert str(caught.value) == (
        "optimizer is SGD without a parameter of the hypernetwork, which would never learn; give it "
        "[*net.parameters(), *hyper.parameters()]."
    )
    hyper.requires_grad_(False)
    hyper.match(torch.optim.SGD(net.parameters(), 0.1))  # of what is not trained nothing is missing


def test_an_ablation_may_be_matched() -> None:
    assert make(encoding="none", scale="matched").scaling is not None


def test_paper_is_the_published_hypernetwork() -> None:
    space = mip.HSpace({"a": mip.Uniform(0, 1), "b": mip.Uniform(0, 1)})
    hyper = mip.HyperNetwork.paper(space, SHAPES)
    assert [layer.out_features for layer in hyper.trunk if isinstance(layer, nn.Linear)] == [16, 64, 128]
    assert float(hyper.encode({"a": 0.2, "b": 0.7}).norm()) == pytest.approx(2**0.5)
    assert hyper.scaling is None
    assert mip.HyperNetwork.paper(space, SHAPES, hidden_sizes=(4,)).width == 4


@torch.no_grad()
@pytest.mark.parametrize("ratio", [0.05, 0.5])
def test_a_ratio_means_the_same_at_every_scale(ratio: float) -> None:
    for arguments in ({}, {"scale": "paper"}, {"hidden_sizes": (16, 64)}, {"head": mip.LowRank(2)}):
        found = []
        for seed in range(20):
            torch.manual_seed(seed)
            net = nn.Linear(20, 30)
            hyper = mip.hypernetize(net, LAM, init=ratio, **arguments)
            found.append(float(hyper({"lam": 0.3})["weight"].norm() / net.weight.norm()))
        assert sum(found) / 20 == pytest.approx(ratio, rel=0.25)


class Task(mip.HyperLightningModule):
    """Least squares."""

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self(batch) - self.h["lam"]).square().mean()


class Plain(L.LightningModule):
    """The same without any h."""

    def __init__(self, optimizer: Any) -> None:
        super().__init__()
        self.net = nn.Linear(3, 1)
        self.optimizer = optimizer

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.net(batch).square().mean()

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters())


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01)


@pytest.mark.parametrize(("optimizer", "family"), [(sgd, "sgd"), (torch.optim.AdamW, "adam")])
def test_a_trainer_matches_the_optimizer_that_it_runs(trainer: Any, optimizer: Any, family: str) -> None:
    model = Task(nn.Linear(3, 1), {"lam": mip.Uniform(0, 1)}, optimizer=optimizer)
    trainer(max_steps=1).fit(model, torch.ones(4, 2, 3))
    assert model.hypernet.family == family


@pytest.mark.parametrize(("optimizer", "family"), [(sgd, "sgd"), (torch.optim.AdamW, "adam")])
def test_the_plug_in_matches_the_optimizer_that_trains_the_network(trainer: Any, optimizer: Any, family: str) -> None:
    model = Plain(optimizer)
    plugin = mip.Hypernetize("net", h={"lam": mip.Uniform(0, 1)}, bind=False)
    trainer(max_steps=1, callbacks=[plugin]).fit(model, torch.ones(4, 2, 3))
    assert model.hypernet.family == family


def test_the_published_hypernetwork_is_named_in_one_word() -> None:
    net = nn.Linear(3, 2)
    assert mip.hypernetize(net, LAM, hypernet=mip.HyperNetwork.paper).width == 128
    assert mip.summary(nn.Linear(3, 2), h=LAM, hypernet=mip.HyperNetwork.paper) == mip.summary(net)
    model = Task(nn.Linear(3, 1), {"lam": mip.Uniform(0, 1)}, hypernet=mip.HyperNetwork.paper)
    assert model.hypernet.scaling is None


def test_what_makes_something_else_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^hypernet made Linear, expected something that makes a HyperNetwork\.$"):
        mip.hypernetize(nn.Linear(3, 2), LAM, hypernet=lambda space, shapes: nn.Linear(1, 1))  # type: ignore[arg-type]


def test_a_head_given_in_python_is_in_the_hyperparameters_as_plain_data(trainer: Any, tmp_path: Any) -> None:
    model = Task(
        nn.Linear(8, 8), {"lam": mip.Uniform(0, 1)}, hypernet={"head": {"weight": mip.LowRank(1), "*": "full"}}
    )
    runner = trainer(max_steps=1)
    runner.fit(model, torch.ones(4, 2, 8))
    runner.save_checkpoint(tmp_path / "a.ckpt")
    again = Task.load_from_checkpoint(tmp_path / "a.ckpt", primary=nn.Linear(8, 8))
    assert again.hypernet.head.kinds == {"weight": "LowRank(rank=1)", "bias": "full"}
    assert torch.equal(flat(again.hypernet({"lam": 0.3})), flat(model.hypernet({"lam": 0.3})))
