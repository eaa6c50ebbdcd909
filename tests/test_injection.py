"""A network runs with generated weights however it is used, and gradients are those of the same computation by hand."""

import contextlib
import copy
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import lightning_mip as mip
from lightning_mip.injection import injectors
from tests.module_kinds import (
    FEATURES,
    KINDS,
    Autoencoder,
    Checkpointed,
    Listed,
    RawParameters,
    Reference,
    attach,
    build,
    exactly,
    gradients,
    loss,
    tensors,
)

DOUBLE = torch.float64


def pair(net: nn.Module, **arguments: Any) -> tuple[nn.Module, list[Tensor], Reference]:
    """A hypernetized network in float64, all that is trained, and the same computation by hand."""
    net = net.double()
    plain = copy.deepcopy(net)
    hyper = attach(net, **arguments)
    return net, [*net.parameters(), *hyper.parameters()], Reference(plain, hyper)


def batch() -> Tensor:
    return torch.randn(4, FEATURES, dtype=DOUBLE)


@contextmanager
def generations(net: nn.Module, during: Callable[[], object] = lambda: None) -> Iterator[list[int]]:
    """Count calls of the hypernetwork, and do something in each."""
    calls: list[int] = []

    def count(*_: Any) -> None:
        calls.append(1)
        during()

    handle = injectors(net)[0].hypernet.register_forward_hook(count)
    yield calls
    handle.remove()


# Every kind of network


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_buffers_and_gradients_are_those_of_the_computation_by_hand(kind: str, residual: bool) -> None:
    net, inputs = build(kind, DOUBLE)
    net, trained, reference = pair(net, residual=residual)
    with mip.at(net, lam=0.3):
        outputs = net(*inputs)
        loss(outputs).backward()
    expected = reference(*inputs, lam=0.3)
    loss(expected).backward()
    assert_close(tensors(outputs), tensors(expected))
    assert_close(gradients(trained), reference.gradients())
    assert_close(dict(net.named_buffers()), dict(reference.net.named_buffers()))


@pytest.mark.parametrize("kind", KINDS)
def test_weights_depend_on_h_and_are_gone_after_the_block(kind: str) -> None:
    net, inputs = build(kind)
    attach(net)
    before = {id(m): set(m.__dict__) for m in net.modules()}
    results = []
    with torch.no_grad():
        for lam in (0.1, 0.9):
            with mip.at(net, lam=lam):
                results.append(tensors(net(*inputs))[0])
    assert not torch.equal(*results)
    assert {id(m): set(m.__dict__) for m in net.modules()} == before


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_and_state_dict_stay_theta0_inside_the_block(kind: str) -> None:
    net, inputs = build(kind)
    attach(net)
    names, values = [n for n, _ in net.named_parameters()], [p.detach().clone() for p in net.parameters()]
    keys = list(net.state_dict())
    with mip.at(net, lam=0.3):
        net(*inputs)
        assert [n for n, _ in net.named_parameters()] == names
        assert list(net.state_dict()) == keys
        assert_close([p.detach() for p in net.parameters()], values, rtol=0, atol=0)


# Ways to use a network


def test_methods_children_and_attributes_of_the_network_see_the_generated_weights() -> None:
    net, _, reference = pair(Autoencoder())
    x = batch()
    weights = reference.weights(lam=0.3)
    code = (x @ weights["encoder.weight"].T + weights["encoder.bias"]).tanh()
    with mip.at(net, lam=0.3):
        assert_close(net.encode(x), code)
        assert_close(net.encoder(x).tanh(), code)
        assert_close(net.encoder.weight, weights["encoder.weight"])


def test_a_method_that_reads_a_parameter_of_the_root_sees_the_generated_one() -> None:
    net, trained, reference = pair(RawParameters(), include="basis")
    x = batch()
    with mip.at(net, lam=0.3):
        code = net.encode(x)
        loss(code).backward()
    expected = (x @ reference.weights(lam=0.3)["basis"]).tanh()
    loss(expected).backward()
    assert_close(code, expected)
    assert_close(gradients(trained), reference.gradients())


def test_several_forwards_in_one_block_generate_once() -> None:
    net, _, _ = pair(Autoencoder())
    with generations(net) as calls, mip.at(net, lam=0.3):
        total = loss(net(batch())) + loss(net(batch())) + loss(net.encode(batch())) + loss(net.encoder(batch()))
        total.backward()
    assert len(calls) == 1


def test_both_hypernetized_networks_of_a_module_have_their_own_h() -> None:
    both = nn.ModuleDict({"a": Autoencoder(), "b": Autoencoder()}).double()
    a, trained_a, reference_a = pair(both["a"])
    b, trained_b, reference_b = pair(both["b"])
    x = batch()
    with mip.at(both["a"], lam=0.1), mip.at(both["b"], lam=0.9):
        outputs = b(a(x))
        loss(outputs).backward()
    expected = reference_b(reference_a(x, lam=0.1), lam=0.9)
    loss(expected).backward()
    assert_close(outputs, expected)
    assert_close(gradients(trained_a + trained_b), reference_a.gradients() + reference_b.gradients())


def test_the_weights_follow_the_h_and_the_parameters_of_a_nested_hypernetwork() -> None:
    net = Autoencoder().double()
    inner = attach(net)
    outer = mip.hypernetize(inner, {"mu": mip.Uniform(0, 1)}, hidden_sizes=(4,))
    x = batch()

    def fresh(mu: float) -> Tensor:
        with mip.at(inner, mu=mu), mip.at(net, lam=0.3):
            return net(x)

    with torch.no_grad(), mip.at(inner, mu=0.2), mip.at(net, lam=0.3):
        first = net(x)
        with mip.at(inner, mu=0.9):
            second = net(x)
        third = net(x)
        for parameter in outer.parameters():
            parameter.add_(0.01)
        fourth = net(x)
        assert_close(fourth, fresh(0.2))
        for parameter in outer.parameters():
            parameter.sub_(0.01)
        assert_close([first, second, third], [fresh(0.2), fresh(0.9), fresh(0.2)])
    assert not torch.allclose(first, second)
    assert not torch.allclose(first, fourth)


def test_a_nested_hypernetwork_is_trained_through_the_network() -> None:
    net = Autoencoder().double()
    plain = copy.deepcopy(net)
    inner = attach(net)
    reference = Reference(plain, inner)
    outer = mip.hypernetize(inner, {"mu": mip.Uniform(0, 1)}, hidden_sizes=(4,))
    outer_reference = Reference(reference.hyper, outer)
    x = batch()
    with mip.at(inner, mu=0.2), mip.at(net, lam=0.3):
        loss(net(x)).backward()
    deltas = outer_reference({"lam": 0.3}, mu=0.2)
    weights = {name: reference.theta0[name] + delta for name, delta in deltas.items()}
    loss(torch.func.functional_call(reference.net, weights, x)).backward()
    trained = [*net.parameters(), *inner.parameters(), *outer.parameters()]
    assert_close(gradients(trained), gradients(reference.theta0.values()) + outer_reference.gradients())


# Several backwards


def test_losses_with_a_backward_each_add_up() -> None:
    net, trained, reference = pair(Autoencoder())
    x = batch()
    with generations(net) as calls, mip.at(net, lam=0.3):
        output, code = net(x), net.encode(x)
        loss(output).backward()
        loss(code).backward()
    (loss(reference(x, lam=0.3)) + loss(reference.net.encoder(x) * 0)).backward()
    weights = reference.weights(lam=0.3)
    loss((x @ weights["encoder.weight"].T + weights["encoder.bias"]).tanh()).backward()
    assert_close(gradients(trained), reference.gradients())
    assert len(calls) == 1


def test_gradients_accumulate_over_blocks() -> None:
    net, trained, reference = pair(Autoencoder())
    for lam in (0.1, 0.6, 0.9):
        x = batch()
        with mip.at(net, lam=lam):
            loss(net(x)).backward()
        loss(reference(x, lam=lam)).backward()
    assert_close(gradients(trained), reference.gradients())


def test_a_backward_after_the_block_is_right_too() -> None:
    net, trained, reference = pair(Autoencoder())
    x = batch()
    losses = []
    for lam in (0.1, 0.9):
        with mip.at(net, lam=lam):
            losses.append(loss(net(x)))
    sum(losses).backward()
    sum(loss(reference(x, lam=lam)) for lam in (0.1, 0.9)).backward()
    assert_close(gradients(trained), reference.gradients())


@pytest.mark.parametrize("use", ["network", "method", "child"])
def test_each_step_in_one_block_uses_the_weights_of_the_last_optimizer_step(use: str) -> None:
    net, trained, reference = pair(Autoencoder(), include="encoder.*")
    x = batch()
    calls: dict[str, Callable[[Tensor], Tensor]] = {"network": net, "method": net.encode, "child": net.encoder}
    plain = reference.net
    by_hand = {"network": plain, "method": plain.encode, "child": plain.encoder}[use]

    class Chosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = plain

        def forward(self, x: Tensor) -> Tensor:
            return by_hand(x)

    chosen = Chosen()
    ours = torch.optim.Adam(trained, 0.01)
    theirs = torch.optim.Adam(reference.parameters, 0.01)
    with mip.at(net, lam=0.3):
        for _ in range(4):
            ours.zero_grad()
            found = loss(calls[use](x))
            found.backward()
            ours.step()
            theirs.zero_grad()
            weights = {f"net.{name}": weight for name, weight in reference.weights(lam=0.3).items()}
            expected = loss(torch.func.functional_call(chosen, weights, x))
            expected.backward()
            theirs.step()
            assert_close(found, expected)
    assert_close([p.detach() for p in trained], [p.detach() for p in reference.parameters])


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad])
@pytest.mark.parametrize("use", ["network", "child"])
def test_a_step_of_a_fused_optimizer_is_seen_although_versions_do_not_show_it(use: str, kind: Any) -> None:
    net = Autoencoder()
    hyper = attach(net)
    optimizer = kind([*net.parameters(), *hyper.parameters()], 0.1, fused=True)
    call, x = net if use == "network" else net.encoder, torch.randn(4, FEATURES)
    with mip.at(net, lam=0.7):
        loss(net(x)).backward()
    with mip.at(net, lam=0.3), torch.no_grad():
        before = call(x)
        optimizer.step()
        after = call(x)
    with mip.at(net, lam=0.3):
        assert_close(after, call(x))
    assert not torch.equal(before, after)


def test_a_step_of_another_network_generates_nothing_anew() -> None:
    net, other = Autoencoder(), nn.Linear(2, 2)
    attach(net)
    optimizer = torch.optim.Adam(other.parameters(), fused=True)
    with mip.at(net, lam=0.3), generations(net) as calls, torch.no_grad():
        for _ in range(3):
            other(torch.ones(1, 2)).sum()
            for parameter in other.parameters():
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
            net(torch.randn(4, FEATURES))
            net.train(not net.training)
    assert not calls


def test_a_copy_sees_the_steps_of_its_own_fused_optimizer() -> None:
    net = copy.deepcopy(hypernetized_linear())
    hyper = injectors(net)[0].hypernet
    optimizer = torch.optim.SGD([*net.parameters(), *hyper.parameters()], 0.1, fused=True)
    with mip.at(net, lam=0.7):
        net(torch.ones(1, 3)).sum().backward()
    with mip.at(net, lam=0.3), torch.no_grad():
        before = net(torch.ones(1, 3))
        optimizer.step()
        assert not torch.equal(before, net(torch.ones(1, 3)))


def hypernetized_linear() -> nn.Module:
    net = nn.Linear(3, 2)
    mip.hypernetize(net, {"lam": mip.Uniform(0, 1)})
    return net


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_look_at_the_network_in_evaluation_keeps_what_a_checkpointed_backward_needs(
    use_reentrant: bool, dropout: float
) -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    hyper = mip.hypernetize(net, {"lam": mip.Uniform(0, 1)}, dropout=dropout)
    x = torch.ones(2, 3, requires_grad=True)
    with mip.at(net, lam=0.3):
        output = checkpoint(net, x, use_reentrant=use_reentrant)
        net.eval()
        with torch.no_grad():
            net(x)
        net.train()
        if dropout:  # which gives another network in evaluation, for which the one of the forward has made room
            with pytest.raises(RuntimeError, match="runs again during the backward"):
                output.sum().backward()
            return
        output.sum().backward()
    assert all(block.grad.any() for block in hyper.head.blocks)


def test_h_gets_its_gradient_in_a_block_that_was_opened_without_gradients() -> None:
    net, _, reference = pair(Autoencoder())
    x = batch()
    ours, theirs = (torch.tensor(0.3, dtype=DOUBLE, requires_grad=True) for _ in range(2))
    with torch.no_grad(), mip.at(net, lam=ours), torch.enable_grad():
        loss(net(x)).backward()
    loss(reference(x, lam=theirs)).backward()
    assert_close(ours.grad, theirs.grad)


def test_a_mode_that_is_switched_in_a_block_reaches_the_hypernetwork() -> None:
    net = nn.Linear(3, 2)
    mip.hypernetize(net, {"lam": mip.Uniform(0, 1)}, dropout=0.5)
    x, found = torch.ones(1, 3), []
    for _ in range(2):
        with mip.at(net.train(), lam=0.3):
            net.eval()
            found.append(net(x))
    assert torch.equal(*found)
    assert torch.equal(found[0], mip.materialize(net, lam=0.3)(x))


@pytest.mark.parametrize("written", ["network", "hypernetwork"])
@pytest.mark.parametrize("use", ["network", "method", "child"])
def test_weights_written_to_without_a_backward_are_used_at_once(use: str, written: str) -> None:
    net, _, _ = pair(Autoencoder())
    calls: dict[str, Callable[[Tensor], Tensor]] = {"network": net, "method": net.encode, "child": net.encoder}
    x = batch()
    other = Autoencoder().double()
    with torch.no_grad(), mip.at(net, lam=0.3):
        before = calls[use](x)
        if written == "network":
            net.load_state_dict(other.state_dict())
        else:
            for parameter in injectors(net)[0].hypernet.parameters():
                parameter.mul_(1.1)
        found = calls[use](x)
        with mip.at(net, lam=0.3):
            assert_close(found, calls[use](x), rtol=0, atol=0)
    assert not torch.allclose(found, before)


def _assign(net: nn.Module) -> None:
    net.load_state_dict({name: value + 1 for name, value in net.state_dict().items()}, assign=True)


def _one_by_one(net: nn.Module) -> None:
    net.encoder.weight = nn.Parameter(net.encoder._parameters["weight"].detach() + 1)


def _by_vector(net: nn.Module) -> None:
    numbers = nn.utils.parameters_to_vector(net.parameters())
    nn.utils.vector_to_parameters(numbers + 1, net.parameters())


@pytest.mark.parametrize("exclude", [(), "decoder"])
@pytest.mark.parametrize(
    ("use", "replace"),
    [
        ("network", _assign),
        ("network", _one_by_one),
        ("network", _by_vector),
        ("method", _assign),
        ("child", _assign),
        ("child", _one_by_one),
    ],
)
def test_parameters_that_others_take_the_place_of_are_used_no_longer(
    use: str, replace: Callable[[nn.Module], None], exclude: Any
) -> None:
    net, _, _ = pair(Autoencoder(), exclude=exclude)
    calls: dict[str, Callable[[Tensor], Tensor]] = {"network": net, "method": net.encode, "child": net.encoder}
    x = batch()
    with torch.no_grad(), mip.at(net, lam=0.3):
        before = calls[use](x)
        replace(net)
        found = calls[use](x)
        with mip.at(net, lam=0.3):
            assert_close(found, calls[use](x), rtol=0, atol=0)
    assert not torch.allclose(found, before)


def test_a_functional_call_uses_and_trains_the_parameters_it_is_given() -> None:
    net, _, reference = pair(Autoencoder())
    x = batch()
    given = {name: (value.detach() + 1).requires_grad_() for name, value in net.named_parameters()}
    theirs = copy.deepcopy(reference)
    theirs.net.load_state_dict(given)
    with mip.at(net, lam=0.3):
        before = net(x)
        found = torch.func.functional_call(net, given, (x,))
        after = net(x)
        loss(found).backward()
    assert_close(found, theirs(x, lam=0.3))
    assert_close((before, after), (reference(x, lam=0.3),) * 2)
    loss(theirs(x, lam=0.3)).backward()
    assert_close([value.grad for value in given.values()], [p.grad for p in theirs.net.parameters()])


def test_copies_of_one_parameter_that_were_tied_before_are_generated_once_for_each_call() -> None:
    net = nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES)).double()
    net[1].weight = net[0].weight
    attach(net)
    net.load_state_dict({name: value.clone() for name, value in net.state_dict().items()}, assign=True)
    with torch.no_grad(), mip.at(net, lam=0.3), generations(net) as calls:
        for _ in range(3):
            net(batch())
    assert not calls


def test_lbfgs_evaluates_its_closure_with_fresh_weights() -> None:
    net, trained, reference = pair(Autoencoder())
    x = batch()

    def minimize(parameters: list[Tensor], compute: Callable[[], Tensor]) -> list[Tensor]:
        optimizer = torch.optim.LBFGS(parameters, 0.1, max_iter=5, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            value = compute()
            value.backward()
            return value

        return [optimizer.step(closure).detach() for _ in range(2)]

    with mip.at(net, lam=0.3):
        found = minimize(trained, lambda: loss(net(x)))
    assert_close(found, minimize(reference.parameters, lambda: loss(reference(x, lam=0.3))))
    assert_close([p.detach() for p in trained], [p.detach() for p in reference.parameters])


def test_a_generator_and_a_discriminator_alternate_in_one_block() -> None:
    generator, trained_g, reference_g = pair(Autoencoder())
    critic, trained_d, reference_d = pair(nn.Linear(FEATURES, 1))
    x, real = batch(), batch()

    def alternate(g: Callable[..., Tensor], d: Callable[..., Tensor], for_g: list[Tensor], for_d: list[Tensor]) -> None:
        optimizer_g, optimizer_d = torch.optim.Adam(for_g, 0.01), torch.optim.Adam(for_d, 0.01)
        for _ in range(2):
            fake = g(x)
            optimizer_d.zero_grad()
            (d(fake.detach()).exp().mean() + (-d(real)).exp().mean()).backward()
            optimizer_d.step()
            optimizer_g.zero_grad()
            (-d(fake)).exp().mean().backward()
            optimizer_g.step()

    with mip.at(generator, lam=0.1), mip.at(critic, lam=0.8):
        alternate(generator, critic, trained_g, trained_d)
    alternate(
        lambda x: reference_g(x, lam=0.1),
        lambda x: reference_d(x, lam=0.8),
        reference_g.parameters,
        reference_d.parameters,
    )
    ours, theirs = trained_g + trained_d, reference_g.parameters + reference_d.parameters
    assert_close([p.detach() for p in ours], [p.detach() for p in theirs])


@pytest.mark.parametrize("use", ["network", "method", "child"])
def test_parameters_frozen_and_released_within_a_block_get_gradients_as_they_stand_at_the_forward(use: str) -> None:
    net, trained, reference = pair(Autoencoder())
    calls: dict[str, Callable[[Tensor], Tensor]] = {"network": net, "method": net.encode, "child": net.encoder}
    x = batch()
    net.encoder.requires_grad_(False)
    with mip.at(net, lam=0.3):
        calls[use](x)
        net.encoder.requires_grad_(True)
        value = loss(calls[use](x)) + 0 * loss(net(x))
        net.decoder.requires_grad_(False)
        value.backward()
    assert net.decoder.weight.grad is None
    assert net.encoder.weight.grad is not None
    weights = reference.weights(lam=0.3)
    code = torch.nn.functional.linear(x, weights["encoder.weight"], weights["encoder.bias"])
    loss({"network": reference(x, lam=0.3), "method": code.tanh(), "child": code}[use]).backward()
    assert_close(net.encoder.weight.grad, reference.theta0["encoder.weight"].grad)
    assert_close(gradients(trained[4:]), reference.gradients()[4:])


def test_a_gradient_penalty_on_the_input_is_right() -> None:
    net, trained, reference = pair(Autoencoder())
    x = batch().requires_grad_()

    def penalty(output: Tensor) -> Tensor:
        return loss(torch.autograd.grad(loss(output), x, create_graph=True))

    with mip.at(net, lam=0.3):
        penalty(net(x)).backward()
    penalty(reference(x, lam=0.3)).backward()
    assert_close(gradients(trained), reference.gradients())


def test_gradients_of_the_weights_are_differentiated_twice() -> None:
    net, trained, reference = pair(Autoencoder())
    x = batch().requires_grad_()

    def penalty(output: Tensor, parameters: list[Tensor]) -> Tensor:
        of_input, *of_weights = torch.autograd.grad(loss(output), [x, *parameters], create_graph=True)
        return of_input.square().sum() + sum(g.square().sum() for g in of_weights)

    with mip.at(net, lam=0.3):
        penalty(net(x), trained).backward()
    penalty(reference(x, lam=0.3), reference.parameters).backward()
    assert_close(gradients(trained), reference.gradients())


def test_second_derivatives_through_dropout_in_the_hypernetwork_are_refused() -> None:
    net, trained, _ = pair(Autoencoder(), hidden_sizes=(64,), dropout=0.5)
    text = (
        "Second derivatives need the same weights twice, but generating them again gave others; backward before the "
        "optimizer's step, and without dropout in the hypernetwork."
    )
    with mip.at(net, lam=0.3):
        value = loss(net(batch()))
        with pytest.raises(RuntimeError, match=exactly(text)):
            torch.autograd.grad(value, trained, create_graph=True)


def test_h_itself_gets_a_gradient() -> None:
    net, _, reference = pair(Autoencoder())
    x = batch()
    ours, theirs = (torch.tensor(0.3, dtype=DOUBLE, requires_grad=True) for _ in range(2))
    with mip.at(net, lam=ours):
        loss(net(x)).backward()
    loss(reference(x, lam=theirs)).backward()
    assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("again", [False, True], ids=["first order", "second order"])
@pytest.mark.parametrize("of", ["theta0", "hypernetwork", "h", "h that is computed"])
def test_a_hook_on_a_gradient_runs_once(of: str, again: bool) -> None:
    net = nn.Linear(3, 2).double()
    hyper = mip.hypernetize(net, {"lam": mip.Uniform(0, 1)})
    given = torch.tensor(0.3, dtype=DOUBLE, requires_grad=True)
    lam, x, seen = given * 1 if "computed" in of else given, torch.randn(5, 3, dtype=DOUBLE), []
    tensor = {"theta0": net.weight, "hypernetwork": hyper.head.blocks[0]}.get(of, lam)

    def gradient() -> Tensor:
        with mip.at(net, lam=lam):
            (found,) = torch.autograd.grad(loss(net(x)), tensor, create_graph=again)
        return found.detach()

    def halve(gradient: Tensor) -> Tensor:
        seen.append(gradient)
        return gradient / 2

    whole = gradient()
    handle = tensor.register_hook(halve)
    assert_close(gradient(), whole / 2)
    assert len(seen) == 1
    handle.remove()
    assert_close(gradient(), whole)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own use, in the first jvp
@pytest.mark.parametrize("head", ["full", {"encoder": mip.LowRank(1), "*": mip.Chunked(4, 1)}], ids=["full", "small"])
def test_torch_func_and_forward_mode_differentiate_with_respect_to_h(head: Any) -> None:
    net, _, reference = pair(Autoencoder(), head=head)
    x, lam = batch(), torch.tensor(0.3, dtype=DOUBLE)

    def ours(lam: Tensor) -> Tensor:
        with mip.at(net, lam=lam):
            return loss(net(x))

    lam_with_gradient = lam.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(reference(x, lam=lam_with_gradient)), lam_with_gradient, create_graph=True)
    (second,) = torch.autograd.grad(first, lam_with_gradient)
    for derivative in (torch.func.grad, torch.func.jacrev, torch.func.jacfwd):
        assert_close(derivative(ours)(lam), first)
    assert_close(torch.func.hessian(ours)(lam), second)
    assert_close(torch.func.jvp(ours, (lam,), (torch.ones_like(lam),))[1], first)
    with torch.autograd.forward_ad.dual_level():
        dual = ours(torch.autograd.forward_ad.make_dual(lam, torch.ones_like(lam)))
        assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, first)


@pytest.mark.parametrize("inside", [True, False])
def test_torch_func_differentiates_with_respect_to_inputs_and_parameters(inside: bool) -> None:
    net, _, reference = pair(Autoencoder())
    x, own = batch(), dict(net.named_parameters())

    def of_input(x: Tensor) -> Tensor:
        with contextlib.nullcontext() if inside else mip.at(net, lam=0.3):
            return loss(net(x))

    def of_parameters(given: dict[str, Tensor], x: Tensor) -> Tensor:
        with contextlib.nullcontext() if inside else mip.at(net, lam=0.3):
            return loss(torch.func.functional_call(net, given, (x,)))

    expected = [torch.autograd.grad(loss(reference(row, lam=0.3)), reference.net.parameters()) for row in x]
    with mip.at(net, lam=0.3) if inside else contextlib.nullcontext():
        for _ in range(2):
            found = torch.func.vmap(torch.func.grad(of_parameters), in_dims=(None, 0))(own, x)
            assert_close([*found.values()], [torch.stack(each) for each in zip(*expected, strict=True)])
            x.requires_grad_()
            (wanted,) = torch.autograd.grad(loss(reference(x, lam=0.3)), x)
            assert_close(torch.func.grad(of_input)(x.detach()), wanted)
            loss(net(x)).backward() if inside else None  # the weights are made anew, inside of what is transformed


def test_vmap_over_h_says_what_to_do_instead() -> None:
    net, _, _ = pair(Autoencoder())
    text = (
        "torch.vmap over h gives a network several h at a time, but it runs with one; use a loop over them, or "
        "per_sample=True of HyperLightningModule."
    )

    def output(lam: Tensor) -> Tensor:
        with mip.at(net, lam=lam):
            return net(batch())

    with pytest.raises(ValueError, match=exactly(text)):
        torch.func.vmap(output)(torch.tensor([0.1, 0.2]))


def test_unused_weights_leave_zero_gradients_not_none_as_ddp_requires() -> None:
    net, trained, _ = pair(Autoencoder(), include=["decoder.*", "encoder.bias"])
    with (
        pytest.warns(UserWarning, match="in the first step: decoder.weight, decoder.bias. Either"),
        mip.at(net, lam=0.3),
    ):
        loss(net.encode(batch())).backward()
    assert all(p.grad is not None for p in trained)
    assert not net.decoder.weight.grad.any()


def test_nothing_of_a_block_is_kept_alive() -> None:
    net, _, _ = pair(Autoencoder())
    gc.disable()
    try:
        with mip.at(net, lam=0.3):
            generated = weakref.ref(net.encoder.weight)
            loss(net(batch())).backward()
        assert generated() is None
    finally:
        gc.enable()


# Entering and leaving


def test_blocks_nest_and_are_entered_again() -> None:
    net, _, reference = pair(Autoencoder())
    x = batch()
    with torch.no_grad():
        expected = {lam: reference(x, lam=lam) for lam in (0.1, 0.9)}
        with mip.at(net, lam=0.1):
            with mip.at(net, lam=0.9):
                assert_close(net(x), expected[0.9])
                with mip.at(net, lam=0.1):
                    assert_close(net(x), expected[0.1])
                assert_close(net.encoder(x), torch.nn.functional.linear(x, net.encoder.weight, net.encoder.bias))
                assert_close(net(x), expected[0.9])
            assert_close(net(x), expected[0.1])


def test_an_exception_in_a_block_restores_what_was_there() -> None:
    net, _, reference = pair(Autoencoder())
    x = batch()
    with torch.no_grad(), mip.at(net, lam=0.1):
        with pytest.raises(RuntimeError, match="cannot be multiplied"), mip.at(net, lam=0.9):
            net(x[:, :2])
        assert_close(net(x), reference(x, lam=0.1))
        with pytest.raises(ValueError, match="outside the support"), mip.at(net, lam=2):
            pass
        assert_close(net(x), reference(x, lam=0.1))
        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            net(x[:, :2])
        assert_close(net(x), reference(x, lam=0.1))
    assert net.encoder.weight is net.encoder._parameters["weight"]


def test_a_block_that_ends_before_one_inside_of_it_is_an_error_and_leaves_the_other_right() -> None:
    net, _, reference = pair(Autoencoder())
    x = batch()

    def serve(lam: float) -> Iterator[Tensor]:
        with mip.at(net, lam=lam):
            while True:
                yield net(x)

    first, second = serve(0.1), serve(0.9)
    next(first), next(second)
    text = (
        "A `with mip.at(...)` block ended before one that began inside of it, such as one in a generator that is not "
        "at its end; what ran in it meanwhile had the h of the other. Give each its own mip.materialize(network, h), "
        "or end one block before the next."
    )
    with pytest.raises(RuntimeError, match=exactly(text)):
        first.close()
    assert_close(next(second), reference(x, lam=0.9))
    second.close()
    with pytest.raises(RuntimeError, match="needs a value of h to run"):
        net(x)


_IN_ANOTHER_THREAD = (
    "Another thread runs this Autoencoder at an h of its own, in a `with mip.at(...)` block, a training step or "
    "mip.materialize; it runs with one h at a time. Use a lock around both, or give each thread a network of its own "
    "before the threads begin: copy.deepcopy(network) or mip.materialize(network, h)."
)


def in_a_thread(work: Callable[[], Any]) -> list[str]:
    """Errors of what another thread does."""
    errors = []

    def run() -> None:
        try:
            work()
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return errors


def in_a_block(net: torch.nn.Module, x: Tensor, lam: float) -> None:
    with mip.at(net, lam=lam):
        net(x)


def test_a_network_is_in_the_blocks_of_one_thread() -> None:
    net, _, reference = pair(Autoencoder())
    x = batch()
    with mip.at(net, lam=0.1):
        assert in_a_thread(lambda: in_a_block(net, x, 0.9)) == [_IN_ANOTHER_THREAD]
        assert_close(net(x), reference(x, lam=0.1))
    assert in_a_thread(lambda: in_a_block(net, x, 0.9)) == []


def test_a_training_step_and_a_block_in_another_thread_exclude_each_other() -> None:
    net, _, reference = pair(Autoencoder())
    x, step = batch(), injectors(net)[0]
    step.use({"lam": 0.1})
    assert in_a_thread(lambda: in_a_block(net, x, 0.9)) == [_IN_ANOTHER_THREAD]
    assert_close(net(x), reference(x, lam=0.1))
    in_a_block(net, x, 0.9)
    assert_close(net(x), reference(x, lam=0.1))
    step.clear()
    assert in_a_thread(lambda: in_a_block(net, x, 0.9)) == []
    with mip.at(net, lam=0.9):
        assert in_a_thread(lambda: step.use({"lam": 0.1})) == [_IN_ANOTHER_THREAD]
        assert_close(net(x), reference(x, lam=0.9))


@pytest.mark.parametrize("given", [(), ({},)], ids=["paused", "substituted"])
def test_where_other_weights_than_generated_ones_are_in_place_another_thread_is_refused(given: tuple[Any, ...]) -> None:
    net, _, reference = pair(Autoencoder())
    x, inside = batch(), injectors(net)[0]
    with inside.substituted(*given) if given else inside.paused():
        refused = [
            in_a_thread(lambda: in_a_block(net, x, 0.9)),
            in_a_thread(lambda: inside.use({"lam": 0.1})),
            in_a_thread(lambda: mip.materialize(net, lam=0.9)),
            in_a_thread(lambda: net(x)),
        ]
    assert refused == [[_IN_ANOTHER_THREAD]] * len(refused)
    with mip.at(net, lam=0.9):
        assert_close(net(x), reference(x, lam=0.9))


def test_a_network_is_taken_out_in_one_thread_and_not_while_another_runs_it() -> None:
    net, _, reference = pair(Autoencoder())
    x, refused = batch(), list[list[str]]()

    def take_out_too() -> None:
        if threading.current_thread() is threading.main_thread():
            refused.append(in_a_thread(lambda: mip.materialize(net, lam=0.9)))

    with generations(net, take_out_too):
        plain = mip.materialize(net, lam=0.1)
        with mip.at(net, lam=0.3):
            output = net(x)
    assert refused == [[_IN_ANOTHER_THREAD]] * 2
    assert_close(plain(x), reference(x, lam=0.1))
    assert_close(output, reference(x, lam=0.3))


def test_a_call_by_hand_leaves_the_weights_of_calls_in_other_threads_in_place_while_it_generates() -> None:
    net, _, reference = pair(Autoencoder())
    x, inside = batch(), injectors(net)[0]
    inside.h = inside.hypernet.space.center()
    net(x)
    own, seen = net.encoder.weight, []
    with generations(net, lambda: seen.append(net.encoder.weight)):
        assert_close(net(x), reference(x, lam=0.5))
    assert [each is own for each in seen] == [True]


def test_a_call_by_hand_in_another_thread_than_the_networks_block_is_refused() -> None:
    net, _, reference = pair(Autoencoder())
    x, inside = batch(), injectors(net)[0]
    inside.h = inside.hypernet.space.center()
    with mip.at(net, lam=0.1):
        assert in_a_thread(lambda: net(x)) == [_IN_ANOTHER_THREAD]
        assert in_a_thread(lambda: net.encoder(x)) == [_IN_ANOTHER_THREAD]
        assert_close(net(x), reference(x, lam=0.1))
    assert_close(net(x), reference(x, lam=0.5))


def test_a_call_by_hand_does_not_write_its_weights_into_a_block_that_began_meanwhile() -> None:
    net, _, reference = pair(Autoencoder())
    x, inside = batch(), injectors(net)[0]
    inside.h = inside.hypernet.space.center()
    begun, refused = threading.Event(), threading.Event()
    outputs: list[Tensor] = []

    def block() -> None:
        with mip.at(net, lam=0.1):
            begun.set()
            refused.wait(60)
            outputs.append(net(x))

    other = threading.Thread(target=block)

    def begin() -> None:
        if other.ident is None:
            other.start()
            begun.wait(60)

    with generations(net, begin), pytest.raises(RuntimeError) as error:
        net(x)
    refused.set()
    other.join()
    assert str(error.value) == _IN_ANOTHER_THREAD
    assert_close(outputs, [reference(x, lam=0.1)])
    assert_close(net(x), reference(x, lam=0.5))


def test_a_call_by_hand_takes_no_h_of_a_block_that_came_and_went_meanwhile() -> None:
    net, _, reference = pair(Autoencoder())
    x, inside = batch(), injectors(net)[0]
    inside.h = inside.hypernet.space.tensors({"lam": 0.1})

    def set_h() -> None:
        inside.h = center

    center = inside.hypernet.space.center()
    with generations(net, set_h):
        assert_close(net(x), reference(x, lam=0.5))


def test_a_block_that_a_backward_opens_is_no_other_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    net, _, _ = pair(Autoencoder())
    x, y = batch(), torch.ones((), dtype=torch.float64, requires_grad=True)

    class InBackward(torch.autograd.Function):
        """Runs the network again as the backward of a checkpoint does; on a GPU autograd has a thread for that."""

        @staticmethod
        def forward(ctx: Any, given: Tensor) -> Tensor:
            return given.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            monkeypatch.setattr("threading.get_ident", lambda: -1)
            with mip.at(net, lam=0.9):
                pass
            return gradient

    with mip.at(net, lam=0.1):
        net(x)
        InBackward.apply(y).backward()
    assert y.grad == 1


def test_the_callers_h_is_not_changed() -> None:
    net, _, _ = pair(Autoencoder())
    h = {"lam": 0.3}
    with mip.at(net, h):
        net(batch())
    assert h == {"lam": 0.3}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_weights_made_without_gradients_are_made_anew_for_training(mode: Callable[[], Any]) -> None:
    net, trained, reference = pair(Autoencoder())
    x = batch()
    loss(reference(x, lam=0.3)).backward()
    with mode(), mip.at(net, lam=0.3):
        net(x)
        with torch.inference_mode(False), torch.enable_grad():
            loss(net(x)).backward()
    assert_close(gradients(trained), reference.gradients())
    for parameter in trained:
        parameter.grad = None
    with mip.at(net, lam=0.3):
        with mode():
            net(x)
        loss(net(x)).backward()
    assert_close(gradients(trained), reference.gradients())


def test_a_copy_made_in_a_block_starts_outside_of_it() -> None:
    net, _, _ = pair(Autoencoder())
    x = batch()
    with torch.no_grad(), mip.at(net, lam=0.3):
        twin = copy.deepcopy(net)
        expected = net(x)
    with pytest.raises(RuntimeError, match="needs a value of h to run"):
        twin(x)
    with torch.no_grad(), mip.at(twin, lam=0.3):
        assert_close(twin(x), expected)
    assert twin.encoder.weight is twin.encoder._parameters["weight"]


def test_a_given_hypernetwork_may_list_the_tensors_in_any_order() -> None:
    net = nn.Linear(FEATURES, FEATURES).double()
    plain = copy.deepcopy(net)
    space = mip.HSpace({"lam": mip.Uniform(0, 1)})
    hyper = mip.HyperNetwork(space, {"bias": net.bias.shape, "weight": net.weight.shape})
    mip.hypernetize(net, space, hypernet=hyper)
    x = batch()
    with mip.at(net, lam=0.3):
        assert_close(net(x), Reference(plain, hyper)(x, lam=0.3))


def test_hooks_that_read_a_weight_before_its_layer_runs_find_the_fresh_one() -> None:
    net = nn.ModuleDict({"layer": nn.utils.spectral_norm(nn.Linear(FEATURES, 3))}).double().eval()
    net, trained, reference = pair(net)
    optimizer = torch.optim.SGD(trained, 0.1)
    x = batch()
    with mip.at(net, lam=0.3):
        loss(net["layer"](x)).backward()
        optimizer.step()
        found = net["layer"](x)
    with torch.no_grad():
        for mine, other in zip(reference.parameters, trained, strict=True):
            mine.copy_(other)
    weights = {name.removeprefix("layer."): weight for name, weight in reference.weights(lam=0.3).items()}
    assert_close(found, torch.func.functional_call(reference.net["layer"], weights, x))


# Precision and compilation


def test_generated_batch_norm_runs_under_bfloat16_autocast() -> None:
    net, inputs = build("batch_norm")
    plain = copy.deepcopy(net)
    hyper = attach(net)
    reference = Reference(plain, hyper)
    with torch.autocast("cpu", torch.bfloat16):
        with mip.at(net, lam=0.3):
            output = net(*inputs)
            loss(output.float()).backward()
        with torch.autocast("cpu", enabled=False):
            weights = reference.weights(lam=0.3)
        expected = torch.func.functional_call(reference.net, weights, inputs)
        loss(expected.float()).backward()
    assert output.dtype == torch.bfloat16
    assert_close(output, expected)
    assert_close(gradients([*net.parameters(), *hyper.parameters()]), reference.gradients())


def test_a_bfloat16_network_is_generated_by_a_float32_hypernetwork() -> None:
    net, inputs = build("linear_root", torch.bfloat16)
    hyper = attach(net)
    with mip.at(net, lam=0.3):
        assert net.weight.dtype == torch.bfloat16
        loss(net(*inputs)).backward()
    assert {p.dtype for p in hyper.parameters()} == {torch.float32}
    assert net.weight.grad.dtype == torch.bfloat16


# Dynamo looks at `.grad` of the generated weights and hides the warning, but not from a filter that makes it an error.
no_leaf = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")


@pytest.fixture
def compiled() -> Iterator[Callable[[nn.Module], Any]]:
    torch.compiler.reset()
    yield lambda net: torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.compiler.reset()


@no_leaf
def test_a_compiled_network_gives_the_same_and_is_not_compiled_again_for_another_h(
    compiled: Callable[..., Any],
) -> None:
    net, trained, reference = pair(Autoencoder())
    fast, x = compiled(net), batch()
    for step, lam in enumerate((0.1, 0.5, 0.9)):
        with torch.compiler.set_stance("fail_on_recompile" if step else "default"), mip.at(fast, lam=lam):
            output = fast(x)
            loss(output).backward()
        expected = reference(x, lam=lam)
        loss(expected).backward()
        assert_close(output, expected)
    assert_close(gradients(trained), reference.gradients())


@no_leaf
def test_a_compiled_network_uses_fresh_weights_after_each_step_in_one_block(compiled: Callable[..., Any]) -> None:
    net, trained, reference = pair(Autoencoder())
    fast, x = compiled(net), batch()
    optimizer = torch.optim.SGD(trained, 0.001)
    other = torch.optim.SGD(reference.parameters, 0.001)
    with mip.at(fast, lam=0.3):
        for step in range(4):
            with torch.compiler.set_stance("fail_on_recompile" if step > 1 else "default"):
                found = loss(fast(x))
            found.backward()
            optimizer.step()
            optimizer.zero_grad()
            expected = loss(reference(x, lam=0.3))
            expected.backward()
            other.step()
            other.zero_grad()
            assert_close(found, expected)


@no_leaf
def test_a_network_compiled_and_called_before_the_attach_is_not_stale(compiled: Callable[..., Any]) -> None:
    net, x = Autoencoder().double(), batch()
    fast = compiled(net)
    without = fast(x)
    net, trained, reference = pair(net)
    with mip.at(fast, lam=0.3):
        output = fast(x)
        loss(output).backward()
    expected = reference(x, lam=0.3)
    loss(expected).backward()
    assert_close(output, expected)
    assert_close(gradients(trained), reference.gradients())
    mip.dehypernetize(fast)
    assert_close(fast(x), without)


@no_leaf
def test_a_compiled_network_trains_with_weights_first_made_without_gradients(compiled: Callable[..., Any]) -> None:
    net, trained, reference = pair(Autoencoder())
    fast, x = compiled(net), batch()
    with torch.no_grad(), mip.at(fast, lam=0.3), torch.enable_grad():
        loss(fast(x)).backward()
    loss(reference(x, lam=0.3)).backward()
    assert_close(gradients(trained), reference.gradients())


# What must not be silent


RUN_AGAIN = (
    "The network runs again during the backward (activation checkpointing), but the weights of its forward are no "
    "longer in place; call backward inside the `with mip.at(...)` block of the forward."
)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpointed_network_is_not_run_again_after_its_block(use_reentrant: bool) -> None:
    net, _, _ = pair(Checkpointed(use_reentrant))
    with mip.at(net, lam=0.3):
        value = loss(net(batch()))
    with pytest.raises(RuntimeError, match=exactly(RUN_AGAIN)):
        value.backward()


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpointed_network_is_not_run_again_with_the_weights_of_another_block(use_reentrant: bool) -> None:
    net, _, _ = pair(Checkpointed(use_reentrant))
    with mip.at(net, lam=0.9):
        with mip.at(net, lam=0.3):
            value = loss(net(batch()))
        with pytest.raises(RuntimeError, match=exactly(RUN_AGAIN)):
            value.backward()


def test_weights_of_two_blocks_do_not_mix_in_a_checkpointed_network() -> None:
    net, _, _ = pair(Checkpointed())
    with mip.at(net, lam=0.9):
        with mip.at(net, lam=0.3):
            inner = loss(net(batch()))
        outer = loss(net(batch()))
        with pytest.raises(RuntimeError, match=exactly(RUN_AGAIN)):
            (inner + outer).backward()


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_losses_of_several_blocks_of_a_checkpointed_network_may_be_kept_for_one_backward(use_reentrant: bool) -> None:
    net, trained, reference = pair(Checkpointed(use_reentrant))
    (injector,) = injectors(net)
    x = batch()
    losses = []
    for lam in (0.1, 0.5, 0.9):
        with injector.at({"lam": lam}):
            losses.append(loss(net(x)))
            injector.keep_for_backward(losses[-1])
    sum(losses).backward()
    injector.clear()
    sum(loss(reference(x, lam=lam)) for lam in (0.1, 0.5, 0.9)).backward()
    assert_close(gradients(trained), reference.gradients())


def test_a_parameter_read_by_a_method_is_not_used_twice_across_a_step() -> None:
    net, trained, _ = pair(RawParameters(), include="basis")
    optimizer = torch.optim.SGD(trained, 0.1)
    text = (
        "This backward goes through weights that were generated before an optimizer's step; run the network again "
        "after the step. Parameters that a method reads itself, not through a layer, are generated anew only by a call "
        "of the whole network or by a new `with mip.at(...)` block."
    )
    with mip.at(net, lam=0.3):
        loss(net.encode(batch())).backward()
        optimizer.step()
        with pytest.raises(RuntimeError, match=exactly(text)):
            loss(net.encode(batch())).backward()
        loss(net(batch())).backward()


def test_a_sliced_parameter_list_which_cuts_the_gradient_is_named_once(recwarn: pytest.WarningsRecorder) -> None:
    text = (
        "No gradient came back to these generated weights in the first step: weights.0, weights.1. Either the loss "
        "does not depend on them (exclude= leaves them out), or the network copies them: slicing an nn.ParameterList "
        "in forward does; take its items one by one."
    )
    net, _, reference = pair(Listed(sliced=True))
    x = batch()
    with pytest.warns(UserWarning, match=exactly(text)) as warned, mip.at(net, lam=0.3):
        loss(net(x)).backward()
    assert warned[0].filename == __file__
    with mip.at(net, lam=0.3):
        output = net(x)
        loss(output).backward()
    assert_close(output, reference(x, lam=0.3))
    assert not recwarn.list


def test_a_parameter_without_numbers_is_not_named_as_untrained() -> None:
    net = Autoencoder()
    net.register_parameter("nothing", nn.Parameter(torch.zeros(0, 3)))
    net, _, _ = pair(net)
    with mip.at(net, lam=0.3):
        loss(net(batch())).backward()


def test_weights_reached_by_a_later_backward_of_the_block_are_not_named() -> None:
    net, _, _ = pair(Autoencoder())
    with mip.at(net, lam=0.3):
        loss(net.encode(batch())).backward()
        loss(net(batch())).backward()


def test_a_weight_that_is_not_finite_is_named_with_h() -> None:
    net, _, _ = pair(Autoencoder())
    with torch.no_grad():
        net.decoder.bias[:2] = float("nan")
    text = (
        "The generated weight decoder.bias is not finite at h = (lam=0.25): 2 of 6 numbers are NaN or infinite. Lower "
        "the learning rate, or clip gradients."
    )
    with pytest.raises(FloatingPointError, match=exactly(text)), mip.at(net, lam=0.25):
        pass


def test_weights_whose_norm_overflows_are_finite_all_the_same() -> None:
    net = nn.Linear(4, 4)
    attach(net)
    with torch.no_grad():
        net.weight.fill_(1e30)
    with mip.at(net, lam=0.25):
        assert net.weight.isfinite().all()


@pytest.mark.parametrize("again", [True, False])
def test_a_write_to_a_generated_weight_after_its_backward_is_named_once(
    again: bool, recwarn: pytest.WarningsRecorder
) -> None:
    net, _, _ = pair(Autoencoder())
    text = (
        "A write to the generated weight encoder.weight after its backward is lost, as it is no parameter. Write to "
        "theta0 outside of the step, such as in on_train_batch_end; to keep theta(h) in bounds, register a "
        "parametrization (torch.nn.utils.parametrize) before the network is hypernetized."
    )

    def step() -> None:
        with mip.at(net, lam=0.3):
            loss(net(batch())).backward()
            with torch.no_grad():
                net.encoder.weight.clamp_(-0.01, 0.01)
            if again:
                net(batch())

    with pytest.warns(UserWarning, match=exactly(text)):
        step()
    step()
    assert not recwarn.list


def test_a_layer_may_write_to_its_generated_weight() -> None:
    net = nn.Sequential(nn.Embedding(5, 3, max_norm=0.1), nn.Linear(3, 1))
    attach(net)
    for _ in range(2):
        with mip.at(net, lam=0.3):
            for _ in range(2):
                net(torch.arange(5)).sum().backward()


def two_of_them() -> nn.Module:
    both = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    attach(both["a"])
    attach(both["b"])
    return both


def one() -> nn.Module:
    net = nn.Linear(2, 2)
    attach(net)
    return net


@pytest.mark.parametrize(
    ("make", "h", "error", "text"),
    [
        (
            lambda: nn.Linear(2, 2),
            {"lam": 0.3},
            ValueError,
            "Linear is not hypernetized; call mip.hypernetize on it first.",
        ),
        (
            two_of_them,
            {"lam": 0.3},
            ValueError,
            "ModuleDict holds 2 hypernetized networks: a, b; pass one of them.",
        ),
        (
            one,
            {"lam": 2},
            ValueError,
            "h['lam'] = 2 is outside the support of its prior Uniform(low=0, high=1, endpoints=0.0).",
        ),
        (
            one,
            {"lam": float("nan")},
            ValueError,
            "h['lam'] = nan is outside the support of its prior Uniform(low=0, high=1, endpoints=0.0).",
        ),
        (one, {}, ValueError, "h lacks lam; given were none, expected lam."),
        (
            one,
            {"lam": 0.3, "lamb": 0.3},
            ValueError,
            "h has no component 'lamb'; its components are lam. Did you mean 'lam'?",
        ),
        (
            one,
            {"lam": [0.1, 0.2]},
            ValueError,
            "h has a batch dimension, but a network runs with one h at a time; take one value, or use per_sample=True "
            "of HyperLightningModule.",
        ),
        (
            one,
            {"lam": [0.1]},
            ValueError,
            "h has a batch dimension, but a network runs with one h at a time; take one value, or use per_sample=True "
            "of HyperLightningModule.",
        ),
    ],
    ids=["plain", "several", "support", "nan", "missing", "unknown", "batch", "batch of one"],
)
def test_a_wrong_block_is_an_error_at_its_beginning(
    make: Callable[[], nn.Module], h: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=exactly(text)), mip.at(make(), h):
        pytest.fail("entered")


def _wrap(net: nn.Module) -> None:
    net.encoder = nn.Sequential(net.encoder)


def _drop(net: nn.Module) -> None:
    del net.encoder


_REPLACED = (
    "a layer was replaced, wrapped, pruned or parametrized since. Do that before the network is hypernetized, or undo "
    "it, mip.dehypernetize, do it, and hypernetize anew."
)
_GONE = "There is no parameter encoder.weight to generate in Autoencoder: " + _REPLACED


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda net: prune.l1_unstructured(net.encoder, "weight", 0.5), _GONE),
        (lambda net: nn.utils.parametrizations.weight_norm(net.encoder), _GONE),
        (_wrap, _GONE),
        (_drop, "There is no module encoder to generate in Autoencoder: " + _REPLACED),
        (
            lambda net: setattr(net, "encoder", nn.Linear(FEATURES, 1).double()),
            f"The parameter encoder.weight has shape (1, {FEATURES}), but (3, {FEATURES}) is generated: " + _REPLACED,
        ),
    ],
    ids=["pruned", "weight_norm", "wrapped", "dropped", "another shape"],
)
@pytest.mark.parametrize("residual", [True, False])
def test_a_layer_that_is_changed_after_the_attach_is_named(
    change: Callable[[nn.Module], object], told: str, residual: bool
) -> None:
    net, _, _ = pair(Autoencoder(), residual=residual)
    with mip.at(net, lam=0.3):
        net(batch())
    change(net)
    for use in (lambda: mip.at(net, lam=0.3).__enter__(), lambda: mip.materialize(net, lam=0.3)):
        with pytest.raises(RuntimeError, match=exactly(told)):
            use()


@pytest.mark.parametrize("call", ["network", "child"])
def test_a_network_outside_of_any_block_says_how_to_run_it(call: str) -> None:
    net = Autoencoder()
    mip.hypernetize(net, {"lam": mip.Uniform(0, 1), "phi": mip.Normal()})
    text = (
        "Autoencoder is hypernetized and needs a value of h to run: use `with mip.at(network, lam=..., phi=...):`, or "
        "mip.materialize for a plain network."
    )
    with pytest.raises(RuntimeError, match=exactly(text)):
        (net if call == "network" else net.encoder)(torch.randn(1, FEATURES))


def test_checkpointing_a_lambda_that_reads_several_children_is_right() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.checkpointing = True
            self.a, self.b = nn.Linear(FEATURES, 3), nn.Linear(3, 3)
            self.scale = nn.Parameter(torch.ones(3))

        def block(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).tanh()) * self.scale

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.block, x, use_reentrant=False) if self.checkpointing else self.block(x)

    net, trained, reference = pair(Block())
    reference.net.checkpointing = False
    x = batch()
    with mip.at(net, lam=0.3):
        loss(net(x)).backward()
    loss(reference(x, lam=0.3)).backward()
    assert_close(gradients(trained), reference.gradients())
