"""HyperNetwork: ``h`` to one tensor per parameter, of a magnitude that does not depend on ``h``."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Size, Tensor, nn
from torch import distributions as dist

from lightning_mip import Categorical, HSpace, HyperNetwork, LogUniform, Simplex, Uniform

LAM = HSpace({"lam": Uniform(0, 1)})
SHAPES = {"weight": Size([4, 3]), "bias": Size([4]), "scale": Size([]), "empty": Size([0])}
# Powers of 2, whose products are exact.
POWERS = [1.0, 0.5, 0.25, 2.0**-20]


def make(space: Any = LAM, shapes: Any = None, seed: int = 0, **arguments: Any) -> HyperNetwork:
    """A published hypernetwork in double precision, the same weights at every call."""
    torch.manual_seed(seed)
    published = {"hidden_sizes": (16, 64, 128), "scale": "paper"}
    return HyperNetwork(space, shapes or SHAPES, **{**published, **arguments}).double()


def small(space: Any = LAM, shapes: Any = None, **arguments: Any) -> HyperNetwork:
    return make(space, shapes, **{"hidden_sizes": (4, 5), **arguments})


def default(**arguments: Any) -> HyperNetwork:
    """The paper's default hypernetwork: raw input, no theta0."""
    return make(residual=False, encoding="none", **arguments)


def flat(tensors: dict[str, Tensor]) -> Tensor:
    """All generated numbers as vectors, one for each h."""
    batch = tensors["scale"].shape if "scale" in tensors else Size([])
    return torch.cat([t.reshape(*batch, t.shape[len(batch) :].numel()) for t in tensors.values()], dim=-1)


def grid(values: list[float]) -> dict[str, Tensor]:
    return {"lam": torch.tensor(values, dtype=torch.float64)}


def states(network: nn.Module) -> dict[str, Any]:
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in network.state_dict().items()}


piecewise_linear = pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU], ids=lambda kind: kind.__name__)


@piecewise_linear
@torch.no_grad()
def test_without_encoding_and_theta0_generated_weights_are_proportional_to_h(activation: type[nn.Module]) -> None:
    hyper = default(activation=activation)
    one = flat(hyper({"lam": torch.tensor(1.0, dtype=torch.float64)}))
    assert one.norm() > 0.1
    for h in POWERS:
        assert torch.equal(flat(hyper({"lam": torch.tensor(h, dtype=torch.float64)})), h * one)
    for h in (0.9, 1 / 3, 1e-4):
        torch.testing.assert_close(
            flat(hyper({"lam": torch.tensor(h, dtype=torch.float64)})), h * one, rtol=1e-12, atol=1e-15
        )


@piecewise_linear
@torch.no_grad()
def test_without_encoding_and_theta0_the_network_vanishes_at_zero(activation: type[nn.Module]) -> None:
    assert not flat(default(activation=activation)({"lam": 0.0})).any()


def test_without_encoding_and_theta0_gradients_of_every_layer_are_proportional_to_h_too() -> None:
    def gradients(h: float) -> list[Tensor]:
        hyper = default(shapes={"weight": Size([4, 3])})
        hyper({"lam": torch.tensor(h, dtype=torch.float64)})["weight"].sum().backward()
        return [p.grad for name, p in hyper.named_parameters() if "bias" not in name]

    for half, one in zip(gradients(0.5), gradients(1.0), strict=True):
        assert one.any()
        assert torch.equal(half, 0.5 * one)


RATIOS = {
    # Norm of the generated weights relative to that at h = 1, mean over initialisations.
    "raw": ({"encoding": "none", "activation": nn.LeakyReLU}, [0, 0.1, 0.25, 0.5, 0.75]),
    "raw_tanh": ({"encoding": "none", "activation": nn.Tanh}, [0, 0.134, 0.328, 0.61, 0.832]),
    "raw_gelu": ({"encoding": "none", "activation": nn.GELU}, [0, 0.094, 0.236, 0.476, 0.729]),
    "pair": ({"encoding": "z|1-z", "activation": nn.LeakyReLU}, [1.13, 1.01, 0.86, 0.73, 0.79]),
    "mip": ({"encoding": "mip", "activation": nn.LeakyReLU}, [1, 1, 1, 1, 1]),
    "mip_relu": ({"encoding": "mip", "activation": nn.ReLU}, [1, 1, 1, 1, 1]),
    "mip_tanh": ({"encoding": "mip", "activation": nn.Tanh}, [1, 1, 1, 1, 1]),
    "mip_gelu": ({"encoding": "mip", "activation": nn.GELU}, [1, 1, 1, 1, 1]),
    "mip_residual": ({"encoding": "mip", "residual": True}, [1, 1, 1, 1, 1]),
}


@pytest.mark.parametrize(("arguments", "expected"), RATIOS.values(), ids=RATIOS)
@torch.no_grad()
def test_the_magnitude_of_generated_weights_follows_h_unless_the_encoding_has_constant_norm(
    arguments: dict[str, Any], expected: list[float]
) -> None:
    ratios = []
    for seed in range(40):
        hyper = make(shapes={"w": Size([200])}, seed=seed, **{"residual": False, **arguments})
        norms = hyper(grid([0, 0.1, 0.25, 0.5, 0.75, 1]))["w"].norm(dim=-1)
        ratios.append(norms[:-1] / norms[-1])
    if arguments["encoding"] == "mip":
        # One draw of the narrow first layer may favour one end of the range, but none makes it vanish.
        assert torch.stack(ratios).min() > 0.25
        assert torch.stack(ratios).max() < 4
    assert torch.stack(ratios).mean(0).tolist() == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize(
    "space",
    [
        LAM,
        HSpace({"a": LogUniform(1e-3, 10), "b": Uniform(-5, 5), "c": Categorical(3), "d": Simplex(3)}),
        HSpace({f"x{k}": dist.Gumbel(0.0, 1.0) for k in range(6)}),
    ],
    ids=["one", "mixed", "many"],
)
@torch.no_grad()
def test_each_generated_tensor_starts_with_norm_one_for_any_space_and_any_size(space: HSpace) -> None:
    shapes = {"large": Size([50, 10]), "vector": Size([3]), "number": Size([])}
    h = space.sample(seed=0, step=0, n=3)
    squares: dict[str, list[float]] = {name: [] for name in shapes}
    for seed in range(100):
        for name, tensor in make(space, shapes, seed=seed, hidden_sizes=(16, 64))(h).items():
            squares[name].append(float(tensor.square().sum() / 3))
    means = {name: sum(values) / 100 for name, values in squares.items()}
    assert means == pytest.approx(dict.fromkeys(shapes, 1.0), rel=0.4)


def test_zero_init_starts_as_theta0_and_trains_the_head() -> None:
    hyper = small(init="zero")
    delta = flat(hyper({"lam": 0.3}))
    assert delta.count_nonzero() == 0
    delta.sum().backward()
    assert all(block.grad.any() for block in hyper.head.blocks)


@torch.no_grad()
def test_a_ratio_sets_the_size_of_the_change_to_each_parameter() -> None:
    shapes = {"weight": Size([8, 5]), "bias": Size([8]), "zeros": Size([4])}
    theta0 = {"weight": torch.randn(8, 5) * 3, "bias": torch.randn(8) * 0.1, "zeros": torch.zeros(4)}
    squares = dict.fromkeys(shapes, 0.0)
    for seed in range(60):
        hyper = make(shapes=shapes, seed=seed, init=0.25, hidden_sizes=(16, 64))
        hyper.initialize_ratio(theta0)
        for name, tensor in hyper({"lam": 0.3}).items():
            squares[name] += float(tensor.square().sum()) / 60
    for name in ("weight", "bias"):
        assert squares[name] ** 0.5 == pytest.approx(0.25 * float(theta0[name].norm()), rel=0.2)
    assert squares["zeros"] == 0


def test_other_inits_stay_as_they_are_when_the_parameters_become_known() -> None:
    hyper = small()
    before = states(hyper)
    hyper.initialize_ratio({name: torch.ones(shape) for name, shape in SHAPES.items()})
    assert all(torch.equal(value, before[name]) for name, value in hyper.named_parameters())


def test_theta0_or_a_bias_holds_what_does_not_depend_on_h() -> None:
    assert small().head.bias is None
    hyper = small(residual=False)
    assert hyper.head.bias.shape == (4 * 3 + 4 + 1,)
    assert not hyper.head.bias.any()


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "layer": {"norm": "layer"},
    "weight": {"norm": "weight"},
    "batch_eval": {"norm": "batch"},
    "dropout_eval": {"dropout": 0.5},
    "trunk": {"trunk": nn.Sequential(nn.Linear(2, 3), nn.Tanh())},
    "empty_trunk": {"trunk": nn.Sequential()},
    "biased": {"residual": False},
    "raw": {"encoding": "none"},
}


@pytest.mark.parametrize("arguments", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("batch", [1, 3])
@torch.no_grad()
def test_a_batch_of_h_generates_what_its_values_do_one_by_one(arguments: dict[str, Any], batch: int) -> None:
    hyper = small(**arguments).eval()
    values = [0.1, 0.9, 0.4][:batch]
    together = hyper(grid(values))
    assert {name: tensor.shape for name, tensor in together.items()} == {n: (batch, *s) for n, s in SHAPES.items()}
    for k, value in enumerate(values):
        alone = hyper({"lam": torch.tensor(value, dtype=torch.float64)})
        assert {name: tensor.shape for name, tensor in alone.items()} == SHAPES
        for name in SHAPES:
            torch.testing.assert_close(alone[name], together[name][k])


@pytest.mark.parametrize("arguments", KINDS.values(), ids=KINDS)
def test_every_parameter_trains_and_h_has_a_gradient(arguments: dict[str, Any]) -> None:
    hyper = small(**arguments).train()
    h = grid([0.1, 0.9, 0.4])
    h["lam"].requires_grad_()
    flat(hyper(h)).square().sum().backward()
    assert h["lam"].grad.isfinite().all()
    assert h["lam"].grad.any()
    for name, parameter in hyper.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("norm", [None, "layer", "weight"])
@torch.no_grad()
def test_generated_weights_differ_from_h_to_h_under_each_norm(norm: Any) -> None:
    one, other = flat(make(norm=norm)(grid([0.1, 0.9])))
    assert (one - other).norm() > 0.3 * one.norm()


@torch.no_grad()
def test_weight_norm_keeps_the_initialisation() -> None:
    torch.testing.assert_close(flat(make(norm="weight")({"lam": 0.3})), flat(make()({"lam": 0.3})))


def test_batch_norm_takes_the_values_of_h_of_one_step_together() -> None:
    hyper = small(norm="batch")
    pair = flat(hyper(grid([0.1, 0.9])))
    other = flat(hyper(grid([0.1, 0.5])))
    assert not torch.allclose(pair[0], other[0])
    assert hyper.eval()({"lam": 0.1})["weight"].shape == (4, 3)


def test_a_batch_norm_that_is_kept_in_evaluation_takes_one_h() -> None:
    hyper = small(norm="batch").train()
    for module in hyper.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eval()
    assert hyper({"lam": 0.1})["weight"].shape == (4, 3)


def test_dropout_acts_in_training_only() -> None:
    hyper = small(dropout=0.5)
    h = {"lam": 0.3}
    assert not torch.equal(flat(hyper(h)), flat(hyper(h)))
    hyper.eval()
    assert torch.equal(flat(hyper(h)), flat(hyper(h)))


@torch.no_grad()
@pytest.mark.parametrize(("components", "widths"), [(1, [16, 8]), (3, [48, 24]), (12, [128, 96]), (40, [128, 128])])
def test_the_trunk_is_as_wide_as_h_has_components_up_to_a_bound(components: int, widths: list[int]) -> None:
    hyper = HyperNetwork({f"h{i}": Uniform(0, 1) for i in range(components)}, SHAPES)
    assert [layer.out_features for layer in hyper.trunk if isinstance(layer, nn.Linear)] == widths


def test_a_trunk_of_ones_own_stands_between_encoding_and_head() -> None:
    trunk = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
    hyper = small(trunk=trunk)
    assert hyper.trunk is trunk
    h = grid([0.3])
    assert torch.equal(flat(hyper(h)), flat(hyper.head(trunk(LAM.encode(h)))))


@torch.no_grad()
def test_an_empty_trunk_makes_the_weights_linear_in_the_encoding() -> None:
    hyper = small(trunk=nn.Sequential())
    (block,) = hyper.head.blocks
    h = {"lam": torch.tensor(0.3, dtype=torch.float64)}
    torch.testing.assert_close(flat(hyper(h)), LAM.encode(h) @ block)


def test_building_leaves_a_trunks_modes_and_statistics_as_they_were() -> None:
    trunk = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3).eval(), nn.Dropout())
    before = states(trunk)
    small(trunk=trunk)
    assert [module.training for module in trunk.modules()] == [True, True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in trunk.state_dict().items())


def test_generating_leaves_the_global_generator_alone() -> None:
    hyper = small()
    before = torch.get_rng_state()
    hyper({"lam": 0.3})
    assert torch.equal(torch.get_rng_state(), before)


@torch.no_grad()
def test_the_precision_is_that_of_the_weights_whatever_h_has() -> None:
    hyper = small()
    assert hyper({"lam": 0.3})["weight"].dtype == torch.float64
    assert hyper.float()({"lam": torch.tensor(0.3, dtype=torch.float64)})["weight"].dtype == torch.float32


@torch.no_grad()
def test_autocast_does_not_round_generated_weights() -> None:
    hyper = small().float()
    expected = flat(hyper({"lam": 0.3}))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = flat(hyper({"lam": 0.3}))
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize("encoding", ["mip", "z|1-z", "none"])
def test_encode_gives_what_the_trunk_sees(encoding: Any) -> None:
    space = HSpace({"lam": Uniform(0, 2), "task": Categorical(3)})
    hyper = small(space, encoding=encoding, encoding_norm="paper")
    h = {"lam": 0.5, "task": 1}
    assert torch.equal(hyper.encode(h), space.encode(h, encoding, "paper"))
    assert hyper.trunk[0].in_features == len(hyper.encode(h))


def test_priors_may_be_given_as_a_mapping_and_shapes_as_tuples() -> None:
    hyper = HyperNetwork({"lam": Uniform(0, 1)}, {"weight": (2, 3)})  # type: ignore[dict-item]
    assert hyper.space == LAM
    assert hyper({"lam": 0.5})["weight"].shape == (2, 3)


@torch.no_grad()
@pytest.mark.parametrize("arguments", KINDS.values(), ids=KINDS)
def test_a_checkpoint_of_plain_data_restores_the_hypernetwork(arguments: dict[str, Any]) -> None:
    space = HSpace({"lam": Uniform(0, 1), "task": Categorical([0.1, 1.0]), "own": dist.Gumbel(0.0, 1.0)})
    trunk = {} if "trunk" not in arguments else {"trunk": nn.Sequential(nn.Linear(6, 3), nn.Tanh())}
    one, other = (small(space, seed=seed, **{**arguments, **trunk}).eval() for seed in (0, 1))
    buffer = io.BytesIO()
    torch.save(one.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    h = space.sample(seed=0, step=0)
    assert torch.equal(flat(other(h)), flat(one(h)))


REORDERED = {name: SHAPES[name] for name in ("weight", "scale", "bias", "empty")}
OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "bounds": (
        {"space": {"lam": Uniform(0, 1)}},
        {"space": {"lam": Uniform(0, 2)}},
        "component 'lam' is Uniform(low=0, high=1, endpoints=0.0) in the checkpoint and Uniform(low=0, high=2, "
        "endpoints=0.0) here. Build the same one first.",
    ),
    "distribution": (
        {"space": {"lam": dist.Gumbel(0.0, 1.0)}},
        {"space": {"lam": dist.Laplace(0.0, 2.0)}},
        "component 'lam' is FromTorch(distribution=Gumbel(loc=0.0, scale=1.0)) in the checkpoint and "
        "FromTorch(distribution=Laplace(loc=0.0, scale=2.0)) here. Build the same one first.",
    ),
    "components": (
        {"space": {"lam": Uniform(0, 1), "old": Categorical(2)}},
        {"space": {"lam": Uniform(0, 1), "new": Simplex(2)}},
        "component 'new' is absent in the checkpoint and Simplex(n=2, alpha=1.0) here; component 'old' is "
        "Categorical(values=[0, 1]) in the checkpoint and absent here. Build the same one first.",
    ),
    "shapes": (
        {},
        {"shapes": {**SHAPES, "weight": Size([4, 4]), "scale": Size([1])}},
        "generated tensor 'weight' is (4, 3) in the checkpoint and (4, 4) here; generated tensor 'scale' is () in the "
        "checkpoint and (1,) here. Build the same one first.",
    ),
    "names": (
        {},
        {"shapes": {f"net.{name}": shape for name, shape in SHAPES.items()}},
        "generated tensor 'net.weight' is absent in the checkpoint and (4, 3) here; generated tensor 'net.bias' is "
        "absent in the checkpoint and (4,) here; generated tensor 'net.scale' is absent in the checkpoint and () "
        "here; and 5 more. Build the same one first.",
    ),
    "order": (
        {},
        {"shapes": REORDERED},
        "its generated tensors come in another order, with 'bias' where 'scale' is here. Build the same one first.",
    ),
    "encoding": (
        {},
        {"encoding": "z|1-z"},
        "its encoding is ['mip', 'unit'], here it is ['z|1-z', 'unit']. Build the same one first.",
    ),
    "encoding_norm": (
        {"encoding_norm": "paper"},
        {},
        "its encoding is ['mip', 'paper'], here it is ['mip', 'unit']. Build the same one first.",
    ),
    "scale": (
        {},
        {"scale": "matched"},
        "its scale is ['paper'], here it is ['matched']. Build the same one first.",
    ),
}


@pytest.mark.parametrize(("theirs", "ours", "message"), OTHERS.values(), ids=OTHERS)
def test_a_checkpoint_of_another_hypernetwork_is_refused_and_changes_nothing(
    theirs: dict[str, Any], ours: dict[str, Any], message: str
) -> None:
    checkpoint = small(**theirs).state_dict()
    hyper = small(seed=1, **ours)
    before = states(hyper)
    with pytest.raises(ValueError, match="The checkpoint is of another hypernetwork") as caught:
        hyper.load_state_dict(checkpoint)
    assert str(caught.value) == f"The checkpoint is of another hypernetwork: {message}"
    after = hyper.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items() if isinstance(value, Tensor))


class Pair(nn.Module):
    """A trunk that gives two tensors."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x, x]


ERRORS: dict[str, tuple[Callable[[], object], str]] = {
    "encoding": (
        lambda: small(encoding="cos|sin"),
        "encoding is 'cos|sin', expected one of 'mip', 'z|1-z', 'none'.",
    ),
    "encoding_norm": (
        lambda: small(encoding_norm="l2"),
        "encoding norm is 'l2', expected one of 'unit', 'paper'.",
    ),
    "scale": (lambda: small(scale=0.1), "scale is 0.1, expected 'matched' or 'paper'."),
    "scale_without_theta0": (
        lambda: small(scale="matched", residual=False),
        "scale is 'matched' with residual=False, but without theta0 there is no learning rate of its own to match; "
        "expected scale='paper'.",
    ),
    "head": (
        lambda: small(head="chunked"),
        "head is 'chunked', expected 'full', LowRank(rank) or Chunked(size), or a mapping of patterns such as "
        "{'*.weight': LowRank(4), '*': 'full'}.",
    ),
    "shapes": (
        lambda: HyperNetwork(LAM, {}),
        "shapes is empty, expected at least one tensor to generate.",
    ),
    "init_name": (
        lambda: small(init="fan_in"),
        "init is 'fan_in', expected 'fan_out', 'zero', or a ratio ||delta|| / ||theta0|| > 0.",
    ),
    "init_ratio": (
        lambda: small(init=0.0),
        "init is 0.0, expected 'fan_out', 'zero', or (with residual=True) a ratio > 0.",
    ),
    "init_ratio_without_theta0": (
        lambda: small(init=0.1, residual=False),
        "init is 0.1, expected 'fan_out', 'zero', or (with residual=True) a ratio > 0.",
    ),
    "hidden_sizes": (
        lambda: small(hidden_sizes=()),
        "hidden_sizes is (), expected at least one positive width.",
    ),
    "width": (
        lambda: small(hidden_sizes=[16, 0]),
        "hidden_sizes is (16, 0), expected at least one positive width.",
    ),
    "norm": (
        lambda: small(norm="group"),
        "norm is 'group', expected None, 'batch', 'layer' or 'weight'.",
    ),
    "batch_norm_with_one_h": (
        lambda: small(norm="batch")({"lam": 0.5}),
        "norm='batch' needs several values of h per step, but got one; train with draws_per_batch >= 2, or use "
        "norm='layer' or norm='weight'.",
    ),
    "batch_norm_with_a_batch_of_one": (
        lambda: small(norm="batch")({"lam": [0.5]}),
        "norm='batch' needs several values of h per step, but got one; train with draws_per_batch >= 2, or use "
        "norm='layer' or norm='weight'.",
    ),
    "trunk_output": (
        lambda: small(trunk=Pair()),
        "trunk maps (1, 2) to [tensor([[0., 0.]]), tensor([[0., 0.]])], expected a tensor of shape (1, features).",
    ),
    "trunk_shape": (
        lambda: small(trunk=nn.Flatten(0)),
        "trunk maps (1, 2) to tensor([0., 0.]), expected a tensor of shape (1, features).",
    ),
    "trunk_input": (
        lambda: small(trunk=nn.Linear(3, 4)),
        "trunk does not take an encoded h of shape (1, 2): mat1 and mat2 shapes cannot be multiplied (1x2 and 3x4)",
    ),
    "outside": (
        lambda: small()({"lam": 1.5}),
        "h['lam'] = 1.5 is outside the support of its prior Uniform(low=0, high=1, endpoints=0.0).",
    ),
}


@pytest.mark.parametrize(("call", "message"), ERRORS.values(), ids=ERRORS)
def test_a_mistake_is_refused_with(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call()
