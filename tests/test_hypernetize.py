"""Attaching leaves a network what it was; detaching and materializing give plain networks back."""

import copy
import importlib
import io
import pickle
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import lightning_mip as mip
from lightning_mip.injection import Injector, injectors
from tests.module_kinds import FEATURES, KINDS, Autoencoder, Reference, attach, build, exactly, loss, tensors

LAM = {"lam": mip.Uniform(0, 1)}
SIZES = (16, 64, 128)
# The module, which the function of the same name hides.
MODULE = importlib.import_module("lightning_mip.hypernetize")
# PyTorch pickles modules with parametrizations only as a state_dict.
PICKLED = [kind for kind in KINDS if kind != "weight_norm"]


def run(net: nn.Module, inputs: tuple[Any, ...], lam: float = 0.3) -> list[Tensor]:
    with torch.no_grad(), mip.at(net, lam=lam):
        return tensors(net(*inputs))


def refill(net: nn.Module) -> None:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.uniform_(-1, 1)


def traces(net: nn.Module) -> dict[str, Any]:
    """Every entry of every module's ``__dict__``: which object it is, for containers which objects they hold."""

    def identity(value: Any) -> Any:
        if isinstance(value, dict):
            return [(key, id(item)) for key, item in value.items()]
        return [id(item) for item in value] if isinstance(value, list) else id(value)

    return {
        f"{path}.{key}": identity(value)
        for path, module in net.named_modules(remove_duplicate=False)
        for key, value in module.__dict__.items()
        # PyTorch itself sets these in each forward: spectral_norm's hook, and weak references of an RNN.
        if not (key == "weight" and hasattr(module, "weight_orig")) and key != "_flat_weight_refs"
    }


# Materialize


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_materialized_network_computes_what_the_hypernetized_one_does(kind: str, residual: bool) -> None:
    net, inputs = build(kind)
    keys, flags = list(net.state_dict()), [p.requires_grad for p in net.parameters()]
    attach(net, residual=residual)
    plain = mip.materialize(net, lam=0.3)
    with torch.no_grad():
        assert_close(tensors(plain(*inputs)), run(net, inputs), atol=1e-6, rtol=1e-6)
    assert type(plain) is type(net)
    assert list(plain.state_dict()) == keys
    assert [p.requires_grad for p in plain.parameters()] == flags
    assert not any(isinstance(hook, Injector) for m in plain.modules() for hook in m._forward_pre_hooks.values())


def test_a_materialized_network_shares_nothing_with_the_hypernetized_one() -> None:
    net, inputs = build("linear_root")
    attach(net)
    plain, before = mip.materialize(net, lam=0.3), run(net, inputs)
    refill(plain)
    assert_close(run(net, inputs), before, rtol=0, atol=0)
    loss(plain(*inputs)).backward()
    assert net.weight.grad is None


def test_materializing_inside_a_block_takes_the_asked_h_and_leaves_the_block_as_it_was() -> None:
    net, inputs = build("methods")
    attach(net)
    expected = {lam: run(net, inputs, lam) for lam in (0.1, 0.9)}
    with torch.no_grad(), mip.at(net, lam=0.1):
        plain = mip.materialize(net, lam=0.9)
        assert_close(tensors(net(*inputs)), expected[0.1], rtol=0, atol=0)
        assert_close(tensors(plain(*inputs)), expected[0.9])


@pytest.mark.parametrize("lam", [[0.1, 0.2], [0.1], []])
def test_several_values_of_h_are_no_network_to_take_out(lam: list[float]) -> None:
    net = nn.Linear(3, 2)
    mip.hypernetize(net, {"lam": mip.Uniform(0, 1)})
    message = (
        "h has a batch dimension, but a network runs with one h at a time; take one value, or use per_sample=True of "
        "HyperLightningModule."
    )
    with pytest.raises(ValueError, match=exactly(message)):
        mip.materialize(net, lam=lam)


def test_materializing_finds_the_one_hypernetized_network_of_a_module() -> None:
    net, inputs = build("methods")
    whole = nn.ModuleDict({"net": net, "other": nn.Linear(2, 2)})
    attach(net)
    plain = mip.materialize(whole, {"lam": 0.3})
    assert isinstance(plain, Autoencoder)
    with torch.no_grad():
        assert_close(tensors(plain(*inputs)), run(net, inputs))


@pytest.mark.filterwarnings("ignore:.torch.nn.utils.weight_norm. is deprecated")
def test_the_old_weight_norm_which_torch_cannot_copy_is_materialized() -> None:
    net = nn.Sequential(nn.utils.weight_norm(nn.Linear(FEATURES, 3)), nn.Tanh())
    hyper, x = attach(net), torch.randn(2, FEATURES)
    plain = mip.materialize(net, lam=0.3)
    deltas = hyper({"lam": 0.3})
    g, v, bias = (net.get_parameter(f"0.{n}") + deltas[f"0.{n}"] for n in ("weight_g", "weight_v", "bias"))
    expected = (x @ (g * v / v.norm(dim=1, keepdim=True)).T + bias).tanh()
    assert_close(plain(x), expected)
    loss(plain(x)).backward()
    assert plain[0].weight_v.grad is not None
    assert net[0].weight_v.grad is None


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_a_scripted_part_of_a_materialized_network_is_trained() -> None:
    scripted = torch.jit.script(nn.Linear(2, 2))
    net = nn.Sequential(nn.Linear(2, 2), scripted)
    scripted.bias.requires_grad_(False)
    attach(net, exclude="1.*")
    plain = mip.materialize(net, lam=0.3)
    assert [p.requires_grad for p in plain.parameters()] == [True, True, True, False]
    loss(plain(torch.ones(1, 2))).backward()
    assert plain[1].weight.grad.abs().sum() > 0


def test_a_nested_hypernetwork_materializes_from_the_inside_out() -> None:
    net, inputs = build("methods")
    inner = attach(net)
    mip.hypernetize(inner, {"mu": mip.Uniform(0, 1)}, hidden_sizes=(4,))
    with torch.no_grad(), mip.at(inner, mu=0.2):
        expected = run(net, inputs)
        assert_close(tensors(mip.materialize(net, lam=0.3)(*inputs)), expected)
    plain_inner = mip.materialize(inner, mu=0.2)
    theta0 = dict(net.named_parameters())
    weights = {name: theta0[name] + delta for name, delta in plain_inner({"lam": 0.3}).items()}
    assert_close(tensors(torch.func.functional_call(mip.dehypernetize(net), weights, inputs)), expected)


# What stays as it was


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_plain_checkpoints_load_before_and_after_the_attach_and_go_back(kind: str, residual: bool) -> None:
    net, inputs = build(kind)
    source, _ = build(kind, seed=1)
    expected = source.state_dict()
    before, _ = build(kind)
    before.load_state_dict(expected)
    hyper = attach(before, residual=residual)
    assert list(before.state_dict()) == list(expected)
    after, _ = build(kind)
    after_hyper = attach(after, residual=residual)
    after_hyper.load_state_dict(hyper.state_dict())
    after.load_state_dict(expected)
    assert_close(run(after, inputs), run(before, inputs), rtol=0, atol=0)
    buffer = io.BytesIO()
    torch.save(after.state_dict(), buffer)
    buffer.seek(0)
    net.load_state_dict(torch.load(buffer, weights_only=True))
    for name, parameter in source.named_parameters():
        assert_close(net.get_parameter(name), parameter, rtol=0, atol=0)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_deepcopy_uses_its_own_weights(kind: str, residual: bool) -> None:
    net, inputs = build(kind)
    attach(net, residual=residual)
    twin = copy.deepcopy(net)
    state = copy.deepcopy(net.state_dict())
    expected = run(net, inputs)
    net.load_state_dict(state)  # the running statistics, which a forward changes
    assert_close(run(twin, inputs), expected, rtol=0, atol=0)
    refill(twin)
    refill(injectors(twin)[0].hypernet)
    assert_close(run(net, inputs), expected, rtol=0, atol=0)
    assert not torch.equal(run(twin, inputs)[0], expected[0])


@pytest.mark.parametrize("kind", PICKLED)
def test_a_pickled_network_comes_back_with_its_hypernetwork(kind: str) -> None:
    net, inputs = build(kind)
    attach(net)
    twin = pickle.loads(pickle.dumps(net))
    assert_close(run(twin, inputs), run(net, inputs), rtol=0, atol=0)
    assert injectors(twin)[0].hypernet is not injectors(net)[0].hypernet


def test_a_copied_child_keeps_to_its_own_copy_of_the_network() -> None:
    net, (x,) = build("methods")
    attach(net)
    child = copy.deepcopy(net).encoder
    with pytest.raises(RuntimeError, match="needs a value of h to run"):
        child(x)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_dehypernetizing_leaves_no_trace(kind: str, residual: bool) -> None:
    net, inputs = build(kind)
    pristine = copy.deepcopy(net)
    before, flags = traces(net), [p.requires_grad for p in net.parameters()]
    attach(net, residual=residual)
    run(net, inputs)
    with mip.at(net, lam=0.3):
        loss(net(*inputs)).backward()
    assert mip.dehypernetize(net) is net
    assert traces(net) == before
    assert [p.requires_grad for p in net.parameters()] == flags
    net.load_state_dict(pristine.state_dict())
    with torch.no_grad():
        assert_close(tensors(net(*inputs)), tensors(pristine(*inputs)), rtol=0, atol=0)


def test_dehypernetizing_inside_a_block_is_complete() -> None:
    net, inputs = build("lstm")
    before = traces(net)
    attach(net)
    with mip.at(net, lam=0.3):
        mip.dehypernetize(net)
        assert traces(net) == before
    assert traces(net) == before
    net(*inputs)


def test_a_dehypernetized_network_may_be_hypernetized_again() -> None:
    net, inputs = build("methods")
    attach(net)
    first = run(net, inputs)
    mip.dehypernetize(net)
    attach(net, hidden_sizes=(3,))
    assert not torch.equal(run(net, inputs)[0], first[0])


def test_class_attributes_repr_and_children_stay() -> None:
    net, _ = build("methods")
    shown, children = repr(net), list(net.children())
    hyper = attach(net)
    assert isinstance(net, Autoencoder)
    assert repr(net) == shown
    assert list(net.children()) == children
    assert net.encoder.out_features == 3
    assert not any(child is hyper for child in net.modules())


def test_apply_initializes_theta0() -> None:
    net, _ = build("sequential_root")
    hyper = attach(net)

    def zero(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.weight)

    net.apply(zero)
    assert not net[0].weight.any()
    with mip.at(net, lam=0.3):
        assert_close(net[0].weight, hyper({"lam": 0.3})["0.weight"])


def test_to_and_eval_reach_the_network() -> None:
    net, inputs = build("batch_norm")
    attach(net)
    net.to(torch.float64).eval()
    assert not net[1].training
    output = run(net, tuple(x.double() for x in inputs))[0]
    assert output.dtype == torch.float64
    assert_close(output.float(), run(net.float(), inputs)[0])


def test_only_the_included_weights_are_generated() -> None:
    net, (x,) = build("methods")
    plain = copy.deepcopy(net)
    hyper = attach(net, include="encoder", exclude="*.bias")
    assert list(hyper.shapes) == ["encoder.weight"]
    with torch.no_grad(), mip.at(net, lam=0.3):
        assert_close(net.encoder.weight, plain.encoder.weight + hyper({"lam": 0.3})["encoder.weight"])
        assert net.encoder.bias is net.encoder._parameters["bias"]
        assert net.decoder.weight is net.decoder._parameters["weight"]
        assert_close(net(x), Reference(plain, hyper)(x, lam=0.3))


def test_weights_without_theta0_leave_the_networks_parameters_out_of_training() -> None:
    net, inputs = build("methods")
    hyper = attach(net, residual=False)
    assert not any(p.requires_grad for p in net.parameters())
    expected = run(net, inputs)
    refill(net)
    assert_close(run(net, inputs), expected, rtol=0, atol=0)
    assert all(p.requires_grad for p in hyper.parameters())


def test_a_ratio_as_init_scales_the_change_to_each_tensor() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    with torch.no_grad():
        net[1].weight.mul_(100)
    hyper = attach(net, init=0.1, hidden_sizes=(16, 64))
    for name, delta in hyper({"lam": 0.3}).items():
        # The head is scaled for features of norm 1; those of an untrained trunk are within a factor of a few.
        assert 0.1 / 5 < delta.norm() / net.get_parameter(name).norm() < 0.1 * 5


def test_the_hypernetwork_has_the_networks_precision_but_single_at_least() -> None:
    for dtype, expected in ((torch.float64, torch.float64), (torch.bfloat16, torch.float32)):
        hyper = attach(nn.Linear(2, 2).to(dtype))
        assert {p.dtype for p in hyper.parameters()} == {expected}


def test_a_network_with_a_scripted_part_is_attached_around_it() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(nn.Linear(2, 2))
    net = nn.Sequential(nn.Linear(2, 2), scripted)
    attach(net, exclude="1.*")
    with mip.at(net, lam=0.3):
        loss(net(torch.ones(1, 2))).backward()
    mip.dehypernetize(net)
    net(torch.ones(1, 2))


def test_a_hypernetwork_made_before_is_used() -> None:
    net, inputs = build("linear_root")
    hyper = mip.HyperNetwork(LAM, {"weight": net.weight.shape, "bias": net.bias.shape})
    assert mip.hypernetize(net, LAM, hypernet=hyper) is hyper
    run(net, inputs)


# BatchNorm


class Normed(nn.Module):
    def __init__(self, count: int = 1) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, 3)
        self.norms = nn.ModuleList(nn.BatchNorm1d(3) for _ in range(count))

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        x = self.layer(x) * scale
        for norm in self.norms:
            x = norm(x)
        return x


@pytest.mark.parametrize(
    ("count", "names"),
    [(1, "norms.0"), (7, "norms.0, norms.1, norms.2, norms.3, norms.4 and 2 more")],
)
def test_running_statistics_that_mix_over_h_are_named(count: int, names: str) -> None:
    text = (
        f"Norm layers keep running statistics that mix over all h: {names}. In evaluation they are right for no "
        "single h; use GroupNorm or track_running_stats=False, or estimate them anew at the chosen h by "
        "mip.materialize(..., recalibrate=dataloader)."
    )
    with pytest.warns(UserWarning, match=exactly(text)) as warned:
        mip.hypernetize(Normed(count), LAM)
    assert warned[0].filename == __file__


def test_batch_norm_without_running_statistics_needs_no_warning() -> None:
    mip.hypernetize(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False)), LAM)


@pytest.mark.parametrize(
    "wrap",
    [lambda x: x, lambda x: (x, torch.zeros(len(x))), lambda x: [x]],
    ids=["inputs", "inputs and targets", "list"],
)
def test_recalibrating_estimates_the_running_statistics_at_that_h(wrap: Callable[[Tensor], Any]) -> None:
    torch.manual_seed(0)
    net = Normed()
    hyper = attach(net)
    batches = [torch.randn(8, FEATURES) for _ in range(3)]
    for x in batches:
        run(net, (x + 5,), 0.9)
    kept = copy.deepcopy(net.state_dict())
    plain = mip.materialize(net, lam=0.3, recalibrate=[wrap(x) for x in batches])
    deltas = hyper({"lam": 0.3})
    weight, bias = (net.get_parameter(f"layer.{name}") + deltas[f"layer.{name}"] for name in ("weight", "bias"))
    features = [x @ weight.T + bias for x in batches]
    assert_close(plain.norms[0].running_mean, torch.stack([f.mean(0) for f in features]).mean(0))
    assert_close(plain.norms[0].running_var, torch.stack([f.var(0) for f in features]).mean(0))
    assert plain.norms[0].momentum == net.norms[0].momentum
    assert all(module.training for module in plain.modules())
    for name, value in net.state_dict().items():
        assert_close(value, kept[name], rtol=0, atol=0)


def test_running_statistics_of_instance_norm_are_estimated_anew_too() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.InstanceNorm1d(2, track_running_stats=True), nn.Conv1d(2, 1, 1))
    attach(net)
    batches = [torch.randn(4, 2, 6) + shift for shift in (0.0, 3.0, 6.0)]
    plain = mip.materialize(net, lam=0.3, recalibrate=batches)
    assert_close(plain[0].running_mean, torch.stack([x.mean((0, 2)) for x in batches]).mean(0))


@pytest.mark.parametrize("training", [False, True])
def test_recalibrating_keeps_dropout_off_and_leaves_the_mode_as_it_was(training: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(FEATURES, affine=False), nn.Linear(FEATURES, 2))
    attach(net)
    net.train(training)
    x = torch.randn(16, FEATURES)
    plain = mip.materialize(net, lam=0.3, recalibrate=[x])
    assert_close(plain[1].running_mean, x.mean(0))
    assert {module.training for module in plain.modules()} == {training}


def test_how_the_hypernetwork_was_made_is_kept_unless_it_was_given_as_a_module() -> None:
    def recipe(**arguments: Any) -> Any:
        net = nn.Linear(2, 2)
        mip.hypernetize(net, LAM, **arguments)
        (injector,) = injectors(net)
        return injector.recipe

    assert recipe(hidden_sizes=(3,)) == {"hidden_sizes": (3,)}
    assert recipe(hypernet=mip.HyperNetwork.paper) == mip.HyperNetwork.paper
    assert recipe(trunk=nn.Linear(2, 3)) is None
    assert recipe(hypernet=mip.HyperNetwork(LAM, {"weight": (2, 2), "bias": (2,)})) is None


@pytest.mark.parametrize("arguments", [{}, {"init": 0.5}, {"init": "zero"}, {"head": mip.LowRank(2), "init": 0.5}])
def test_a_hypernetwork_made_by_a_function_starts_as_one_made_from_arguments(arguments: dict[str, Any]) -> None:
    def generated(**given: Any) -> Tensor:
        torch.manual_seed(0)
        return mip.hypernetize(nn.Embedding(6, 5, padding_idx=1), LAM, **given)({"lam": 0.3})["weight"]

    assert torch.equal(generated(hypernet=partial(mip.HyperNetwork, **arguments)), generated(**arguments))


@pytest.mark.parametrize("way", ["loaded", "attached before"])
def test_a_function_that_returns_a_trained_hypernetwork_gets_it_attached_as_it_is(way: str) -> None:
    first = nn.Embedding(6, 5, padding_idx=1)
    trained = mip.hypernetize(first, LAM, init=0.5)
    refill(trained)
    mip.dehypernetize(first)

    def made(space: mip.HSpace, shapes: dict[str, torch.Size]) -> mip.HyperNetwork:
        if way == "attached before":
            return trained
        again = mip.HyperNetwork(space, shapes, init=0.5)
        again.load_state_dict(trained.state_dict())
        return again

    before = trained({"lam": 0.3})["weight"]
    other = nn.Embedding(6, 5, padding_idx=1)
    assert torch.equal(mip.hypernetize(other, LAM, hypernet=made)({"lam": 0.3})["weight"], before)


# Memory


def test_a_hypernetwork_that_does_not_fit_is_refused_with_its_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "available_memory", lambda device: 2**20)
    net = nn.Linear(100, 40)
    text = (
        "generated tensor               shape       numbers   share\n"
        "weight                     (40, 100)         4,000   99.0%\n"
        "bias                           (40,)            40    1.0%\n"
        "all                                          4,040  100.0%\n"
        "hypernetwork: 526,577 parameters; training takes 8.0 MiB (weights 2.0, gradients 2.0, Adam 4.0)\n"
        "Training this hypernetwork takes 0.0 GiB, the device has 0.0 GiB. Generate less (include=, exclude=, "
        "head=LowRank(4)), make the last of hidden_sizes smaller, or pass force=True."
    )
    for given in ({"hidden_sizes": SIZES}, {"hypernet": partial(mip.HyperNetwork, hidden_sizes=SIZES)}):
        with pytest.raises(MemoryError, match=exactly(text)):
            mip.hypernetize(net, LAM, **given)
        assert not injectors(net)
    assert mip.hypernetize(net, LAM, hidden_sizes=SIZES, force=True).shapes


def test_memory_of_unknown_size_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "available_memory", lambda device: None)
    mip.hypernetize(nn.Linear(2, 2), LAM)


# Messages


def hypernetized() -> nn.Module:
    net = nn.Sequential(nn.Linear(2, 2))
    attach(net)
    return net


def broken() -> nn.Module:
    net = nn.Linear(2, 2)
    attach(net)
    nn.init.constant_(net.weight, float("inf"))
    return net


def hyper_of(shapes: dict[str, tuple[int, ...]]) -> mip.HyperNetwork:
    return mip.HyperNetwork(LAM, {name: torch.Size(shape) for name, shape in shapes.items()})


FITTING = {"weight": (2, 2), "bias": (2,)}


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: mip.hypernetize(hypernetized(), LAM),
            ValueError,
            "Sequential is hypernetized already (at its root); call mip.dehypernetize first.",
        ),
        (
            lambda: mip.hypernetize(nn.Sequential(nn.ReLU(), hypernetized()), LAM),
            ValueError,
            "Sequential is hypernetized already (at 1); call mip.dehypernetize first.",
        ),
        (
            lambda: mip.hypernetize(hypernetized()[0], LAM),
            ValueError,
            "Linear is hypernetized already (at its root); call mip.dehypernetize first.",
        ),
        (
            lambda: mip.dehypernetize(nn.Linear(2, 2)),
            ValueError,
            "Linear is not hypernetized; call mip.hypernetize on it first.",
        ),
        (
            lambda: mip.materialize(nn.Linear(2, 2), lam=0.3),
            ValueError,
            "Linear is not hypernetized; call mip.hypernetize on it first.",
        ),
        (
            lambda: mip.materialize(nn.ModuleList([hypernetized(), hypernetized()]), lam=0.3),
            ValueError,
            "ModuleList holds 2 hypernetized networks: 0, 1; pass one of them.",
        ),
        (
            lambda: mip.materialize(hypernetized(), lam=-1),
            ValueError,
            "h['lam'] = -1 is outside the support of its prior Uniform(low=0, high=1, endpoints=0.0).",
        ),
        (
            lambda: mip.materialize(hypernetized(), mu=0.3),
            ValueError,
            "h has no component 'mu'; its components are lam.",
        ),
        (
            lambda: mip.materialize(broken(), lam=0.5),
            FloatingPointError,
            "The generated weight weight is not finite at h = (lam=0.5): 4 of 4 numbers are NaN or infinite. Lower the "
            "learning rate, or clip gradients.",
        ),
        (
            lambda: mip.materialize(hypernetized(), lam=0.5, recalibrate=iter(())),
            ValueError,
            "recalibrate has no batches, expected at least one to estimate running statistics on.",
        ),
        (
            lambda: mip.hypernetize(nn.Linear(2, 2), {}),
            ValueError,
            "h is empty, expected at least one component such as {'lam': Uniform(0, 1)}.",
        ),
        (
            lambda: mip.hypernetize(nn.Linear(2, 2), LAM, hypernet=hyper_of(FITTING), dropout=0.1),
            TypeError,
            "hypernet is given, so it takes no further arguments, but got dropout.",
        ),
        (
            lambda: mip.hypernetize(nn.Linear(2, 2), {"lam": mip.Uniform(0, 2)}, hypernet=hyper_of(FITTING)),
            ValueError,
            "hypernet was made for h = HSpace({'lam': Uniform(low=0, high=1, endpoints=0.0)}), but h is HSpace({'lam': "
            "Uniform(low=0, high=2, endpoints=0.0)}); pass the same space.",
        ),
        (
            lambda: mip.hypernetize(nn.Linear(2, 2), LAM, hypernet=hyper_of({"weight": (2, 3), "bias": (2,)})),
            ValueError,
            "hypernet does not fit the network: weight has shape (2, 3) in the hypernetwork and (2, 2) in the network; "
            "make it from the network's own shapes.",
        ),
        (
            lambda: mip.hypernetize(nn.Linear(2, 2), LAM, hypernet=hyper_of({"weight": (2, 2)})),
            ValueError,
            "hypernet does not fit the network: bias has shape None in the hypernetwork and (2,) in the network; make "
            "it from the network's own shapes.",
        ),
        (
            lambda: mip.hypernetize(nn.Linear(2, 2), LAM, init="ones"),
            ValueError,
            "init is 'ones', expected 'fan_out', 'zero', or a ratio ||delta|| / ||theta0|| > 0.",
        ),
    ],
)
def test_a_wrong_call_says_what_was_given_and_what_to_do(
    call: Callable[[], Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=exactly(text)):
        call()


def test_a_refused_attach_leaves_no_trace() -> None:
    net, inputs = build("batch_norm")
    before = traces(net)
    for arguments in ({"include": "nothing"}, {"init": "ones"}, {"hidden_sizes": ()}):
        with pytest.raises(ValueError, match=r"nothing|ones|hidden_sizes"):
            attach(net, **arguments)
        assert traces(net) == before
    net(*inputs)
