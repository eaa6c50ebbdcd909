"""Kinds of networks that a hypernetwork may be attached to: name -> builder of (network, inputs).

One entry for each way in which PyTorch modules own, share and read their weights; and, at the end, the same computation
written by hand, which tests compare with.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

from lightning_mip import HSpace, HyperNetwork, Uniform, hypernetize

Built = tuple[nn.Module, tuple[Any, ...]]

FEATURES = 6
BATCH = 4


class Tied(nn.Module):
    """A token model whose embedding is also its output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, FEATURES)
        self.hidden = nn.Linear(FEATURES, FEATURES)
        self.output = nn.Linear(FEATURES, 7)
        self.output.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.output(self.hidden(self.embedding(tokens)).tanh())


class Shared(nn.Module):
    """One layer under two names, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, FEATURES)
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())


class Listed(nn.Module):
    """Weights in an ``nn.ParameterList``, read by index or by iterating over a slice."""

    def __init__(self, sliced: bool = False) -> None:
        super().__init__()
        self.sliced = sliced
        self.weights = nn.ParameterList(torch.randn(FEATURES, FEATURES) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights[:2] if self.sliced else self.weights:
            x = (x @ weight).tanh()
        return x @ self.weights[-1]


class Keyed(nn.Module):
    """Weights in an ``nn.ParameterDict``."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterDict({"inner": torch.randn(FEATURES, 3), "out": torch.randn(3, FEATURES)})

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weights["inner"]).tanh() @ self.weights["out"]


class Checkpointed(nn.Module):
    """Two blocks whose activations are computed again in the backward."""

    def __init__(self, use_reentrant: bool = False) -> None:
        super().__init__()
        self.use_reentrant = use_reentrant
        self.checkpointing = True
        self.first = nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.Tanh(), nn.Linear(FEATURES, FEATURES))
        self.second = nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.Tanh(), nn.Linear(FEATURES, 2))

    def forward(self, x: Tensor) -> Tensor:
        if not (self.checkpointing and torch.is_grad_enabled()):
            return self.second(self.first(x))
        if self.use_reentrant:  # it gives gradients only to what depends on an input that wants one
            x = x.detach().requires_grad_()
        x = checkpoint(self.first, x, use_reentrant=self.use_reentrant)
        return checkpoint(self.second, x, use_reentrant=self.use_reentrant)


class RawParameters(nn.Module):
    """Parameters at the root, one of them a number, and methods that read them."""

    def __init__(self) -> None:
        super().__init__()
        self.basis = nn.Parameter(torch.randn(FEATURES, 3))
        self.log_scale = nn.Parameter(torch.tensor(0.5))

    def encode(self, x: Tensor) -> Tensor:
        return (x @ self.basis).tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.encode(x) @ self.basis.T * self.log_scale.exp()


class Autoencoder(nn.Module):
    """A network with methods of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(FEATURES, 3)
        self.decoder = nn.Linear(3, FEATURES)

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(x).tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encode(x))


def _on_features(build: Callable[[], nn.Module]) -> Callable[[], Built]:
    return lambda: (build(), (torch.randn(BATCH, FEATURES),))


def _on_image(build: Callable[[], nn.Module], *size: int) -> Callable[[], Built]:
    return lambda: (build(), (torch.randn(BATCH, 2, *size),))


def _on_sequence(build: Callable[[], nn.Module]) -> Callable[[], Built]:
    return lambda: (build(), (torch.randn(5, BATCH, FEATURES),))


def _on_tokens(build: Callable[[], nn.Module]) -> Callable[[], Built]:
    return lambda: (build(), (torch.randint(7, (BATCH, 5)),))


def _attention() -> Built:
    x = torch.randn(5, BATCH, FEATURES)
    return nn.MultiheadAttention(FEATURES, 2), (x, x, x)


def _transformer_layer() -> nn.Module:
    return nn.TransformerEncoderLayer(FEATURES, 2, dim_feedforward=8, dropout=0.0, batch_first=True)


def _frozen_layer() -> nn.Module:
    net = nn.Sequential(nn.Linear(FEATURES, 3), nn.Tanh(), nn.Linear(3, 2))
    net[0].requires_grad_(False)
    return net


def _hypernetwork() -> Built:
    space = HSpace({"lam": Uniform(0, 1)})
    shapes = {"weight": torch.Size([3, 2]), "bias": torch.Size([3])}
    return HyperNetwork(space, shapes, hidden_sizes=(4, 5)), ({"lam": torch.tensor(0.7)},)


KINDS: dict[str, Callable[[], Built]] = {
    "linear_root": _on_features(lambda: nn.Linear(FEATURES, 3)),
    "bias_free": _on_features(lambda: nn.Linear(FEATURES, 3, bias=False)),
    "sequential_root": _on_features(lambda: nn.Sequential(nn.Linear(FEATURES, 3), nn.ReLU(), nn.Linear(3, 2))),
    "methods": _on_features(Autoencoder),
    "convolution_1d": _on_image(lambda: nn.Conv1d(2, 3, 3), 7),
    "convolution_2d": _on_image(lambda: nn.Conv2d(2, 4, 3, groups=2), 5, 5),
    "convolution_3d": _on_image(lambda: nn.ConvTranspose3d(2, 3, 2), 3, 3, 3),
    "batch_norm": _on_image(lambda: nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)), 4, 4),
    "layer_norm": _on_features(lambda: nn.LayerNorm(FEATURES)),
    "group_norm": _on_image(lambda: nn.GroupNorm(2, 2), 4, 4),
    "embedding": _on_tokens(lambda: nn.Embedding(7, 3, padding_idx=0)),
    "sparse_embedding": _on_tokens(lambda: nn.Embedding(7, 3, sparse=True)),
    "bounded_embedding": _on_tokens(lambda: nn.Sequential(nn.Embedding(7, 3, max_norm=0.5), nn.Linear(3, 2))),
    "lstm": _on_sequence(lambda: nn.LSTM(FEATURES, 3)),
    "gru": _on_sequence(lambda: nn.GRU(FEATURES, 3, num_layers=2, bidirectional=True)),
    "attention": _attention,
    "transformer_train": _on_sequence(_transformer_layer),
    "transformer_eval": _on_sequence(lambda: _transformer_layer().eval()),
    "tied_weights": _on_tokens(Tied),
    "shared_module": _on_features(Shared),
    "parameter_list": _on_features(Listed),
    "parameter_dict": _on_features(Keyed),
    "checkpoint": _on_features(Checkpointed),
    "checkpoint_reentrant": _on_features(lambda: Checkpointed(use_reentrant=True)),
    "frozen_layer": _on_features(_frozen_layer),
    "weight_norm": _on_features(lambda: nn.Sequential(weight_norm(nn.Linear(FEATURES, 3)), nn.Tanh())),
    "spectral_norm_hook": _on_features(lambda: nn.utils.spectral_norm(nn.Linear(FEATURES, 3))),
    "raw_parameters": _on_features(RawParameters),
    "nested_hypernetwork": _hypernetwork,
}


def build(kind: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Built:
    """Build a kind of network and inputs for it, reproducibly."""
    torch.manual_seed(seed)
    net, inputs = KINDS[kind]()
    return net.to(dtype), torch.utils._pytree.tree_map(
        lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x, inputs
    )


def tensors(outputs: Any) -> list[Tensor]:
    """All tensors of a network's outputs, whatever their nesting."""
    return [leaf for leaf in torch.utils._pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def loss(outputs: Any) -> Tensor:
    """A scalar that depends on every output in a different way."""
    return torch.stack([(i + 1) * (tensor.sin() ** 2).sum() for i, tensor in enumerate(tensors(outputs))]).sum()


def attach(net: nn.Module, **arguments: Any) -> HyperNetwork:
    """Hypernetize ``net`` for one number ``lam`` in [0, 1], with a small trunk, and without the BatchNorm warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Norm layers")
        return hypernetize(net, {"lam": Uniform(0, 1)}, **{"hidden_sizes": (4, 5), **arguments})


def simplified(net: nn.Module) -> nn.Module:
    """Switch off what goes wrong with ``functional_call``: activation checkpointing and sparse gradients."""
    for module in net.modules():
        if hasattr(module, "checkpointing"):
            module.checkpointing = False
        if isinstance(module, nn.Embedding):
            module.sparse = False
    return net


class Reference:
    """The same computation by hand: ``functional_call`` on copies with ``theta0 + hyper(h)``.

    Make it before the network runs; the copies share nothing with it.
    """

    def __init__(self, plain: nn.Module, hyper: HyperNetwork) -> None:
        self.net, self.hyper = simplified(copy.deepcopy(plain)), copy.deepcopy(hyper)
        # Kept, as functional_call does not put the parameters of shared modules back.
        self.theta0 = dict(self.net.named_parameters())
        self.parameters = [*self.theta0.values(), *self.hyper.parameters()]

    def weights(self, **h: Any) -> dict[str, Tensor]:
        """Compute ``theta(h)``."""
        weights = {}
        for name, delta in self.hyper(h).items():
            weights[name] = self.theta0[name] + delta if self.hyper.residual else delta.clone()
        return weights

    def __call__(self, *inputs: Any, **h: Any) -> Any:
        """Run the network with ``theta(h)``."""
        return functional_call(self.net, {**self.theta0, **self.weights(**h)}, inputs)

    def gradients(self) -> list[Tensor]:
        """Gradients of the network's and the hypernetwork's parameters, zero where there are none."""
        return gradients(self.parameters)


def gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Gradients, zero where there are none."""
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]


def exactly(text: str) -> str:
    """The regular expression of one whole message."""
    return f"^{re.escape(text)}$"
