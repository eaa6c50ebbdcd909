"""What a cell runs: a network of a kind with its hypernetwork, the same by hand, and how the two are compared."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_mip import HyperNetwork
from lightning_mip.injection import the_injector
from tests.matrix.kinds import DOUBLE, Kind, converted
from tests.module_kinds import Reference, attach, gradients, loss, simplified, tensors

# Relative errors of float64, and of bfloat16, whose numbers are 2^-8 apart.
EXACT, COARSE = 1e-8, 0.25


class ByHand(Reference):
    """The reference in float64, around a network that is its own already."""

    def __init__(self, plain: nn.Module, hyper: HyperNetwork, exact: bool = True) -> None:
        self.net, self.hyper = simplified(plain), copy.deepcopy(hyper)
        if exact:
            double(self.net)
            self.hyper.double()
        self.exact = exact
        self.theta0 = dict(self.net.named_parameters())
        self.parameters = [*self.theta0.values(), *self.hyper.parameters()]

    def __call__(self, *inputs: Any, **h: Any) -> Any:
        return super().__call__(*(converted(inputs, DOUBLE) if self.exact else inputs), **h)

    def set(self, parameters: Iterable[Tensor]) -> None:
        """Take parameters over."""
        with torch.no_grad():
            for own, given in zip(self.parameters, parameters, strict=True):
                own.copy_(given)


def double(module: nn.Module) -> None:
    """Convert a module to double precision, real or complex (``Module.double`` leaves complex tensors as they are)."""

    def convert(tensor: Tensor) -> Tensor:
        if tensor.is_complex():
            return tensor.to(torch.complex128)
        return tensor.double() if tensor.is_floating_point() else tensor

    module._apply(convert)


def made(kind: Kind, dtype: torch.dtype = DOUBLE) -> tuple[nn.Module, tuple[Any, ...], ByHand]:
    """A hypernetized network of a kind, its inputs, and the reference.

    The network is built twice rather than copied, as torch cannot copy every kind.
    """
    net, inputs = kind.build(dtype)
    hyper = attach(net, **kind.arguments)
    return net, inputs, ByHand(kind.build(dtype)[0], hyper, kind.exact)


def value(outputs: Any) -> Tensor:
    """A scalar of all outputs, summed in single precision at least."""
    return loss([t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors(outputs)])


def tolerance(kind: Kind) -> float:
    """Of a network that runs in its own dtypes, or in float64."""
    return kind.tolerance if kind.own else EXACT


def assert_near(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float, what: str) -> None:
    """Compare tensor by tensor by the norm of the difference, relative to that of the tensor.

    Where a tensor is nearly zero, which in coarse precisions is all but exact, the size of the others counts.
    """
    found, expected = [*map(_real, found)], [*map(_real, expected)]
    norms = [float(tensor.norm()) for tensor in expected]
    typical = (sum(norm**2 for norm in norms) / max(len(norms), 1)) ** 0.5
    assert len(found) == len(expected), what
    for place, (one, other, norm) in enumerate(zip(found, expected, norms, strict=True)):
        assert one.shape == other.shape, f"{what} {place}"
        apart = float((one - other).norm())
        assert apart <= tolerance * max(norm, 0.1 * typical), f"{what} {place} of {len(norms)}: {apart:g} of {norm:g}"


def assert_same_run(
    net: nn.Module, run: Any, inputs: tuple[Any, ...], by_hand: ByHand, lam: float, tolerance: float
) -> None:
    """Compare outputs and gradients of a network inside its block with the reference."""
    trained = by_hand.parameters
    own = [*net.parameters(), *the_injector(net).hypernet.parameters()]
    for parameter in (*own, *trained):
        parameter.grad = None
    outputs = run(*inputs)
    value(outputs).backward()
    expected = by_hand(*inputs, lam=lam)
    value(expected).backward()
    assert_near(tensors(outputs), tensors(expected), tolerance, "output")
    assert_near(gradients(own), gradients(trained), tolerance, "gradient")


def assert_same_buffers(net: nn.Module, by_hand: ByHand, tolerance: float) -> None:
    """Compare what forwards have written."""
    found, expected = dict(net.named_buffers()), dict(by_hand.net.named_buffers())
    assert list(found) == list(expected)
    for name in found:
        assert_near([found[name]], [expected[name]], tolerance, name)


def _real(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).double()


def quietly(make: Any, *args: Any, **arguments: Any) -> Any:
    """Attach without the warning of BatchNorm's running statistics."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Norm layers")
        return make(*args, **arguments)
