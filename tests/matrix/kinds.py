"""The rows of the matrix: kinds of networks, those of `tests.module_kinds` and what else people hypernetize."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils._pytree import tree_map

from tests.module_kinds import BATCH, FEATURES, KINDS, Built

DOUBLE = torch.float64


@dataclass(frozen=True)
class Kind:
    """One row.

    Attributes:
        says: what it is, for a reader.
        network: builds the network and its inputs.
        arguments: of `hypernetize`, for what it needs.
        own: the dtypes of its parameters are what it is about, so they are not converted.
        exact: whether the reference is computed in float64; not where rounding is what the network does.
        tolerance: of a network that keeps its dtypes, relative.
        whole: torch.compile makes one graph of it; not where torch itself leaves parts of it to Python.
    """

    says: str
    network: Callable[[], Built]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    own: bool = False
    exact: bool = True
    tolerance: float = 1e-4
    whole: bool = True

    def build(self, dtype: torch.dtype = DOUBLE, seed: int = 0) -> Built:
        """Build network and inputs, the same for the same seed."""
        torch.manual_seed(seed)
        net, inputs = self.network()
        if self.own:
            return net, inputs
        return net.to(dtype), converted(inputs, dtype)


def converted(tree: Any, dtype: torch.dtype) -> Any:
    """All floating tensors of a tree in one dtype."""
    return tree_map(lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x, tree)


class Symmetric(nn.Module):
    """A parametrization: a symmetric matrix from its upper triangle."""

    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).mT


class Converting(nn.Module):
    """A linear layer that takes its input in the dtype of its own weight."""

    def __init__(self, inputs: int, outputs: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, outputs, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.to(self.layer.weight.dtype)).tanh()


class Complex(nn.Module):
    """A filter with complex coefficients between two real layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, FEATURES)
        self.filter = nn.Parameter(torch.randn(FEATURES // 2 + 1, dtype=torch.complex64))
        self.last = nn.Linear(FEATURES, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.fft.irfft(torch.fft.rfft(self.first(x)) * self.filter, n=FEATURES)
        return self.last(y.tanh())


class Buffered(nn.Module):
    """Centers its features by their running mean, counts its calls, and has a fixed table that no checkpoint holds."""

    def __init__(self, in_place: bool = True) -> None:
        super().__init__()
        self.in_place = in_place
        self.first, self.last = nn.Linear(FEATURES, 4), nn.Linear(4, 2)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("table", torch.randn(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if self.training:
            with torch.no_grad():
                mean = self.mean.lerp(y.mean(0).to(self.mean), 0.5)
                if self.in_place:
                    self.mean.copy_(mean)
                    self.calls.add_(1)
                else:
                    self.mean, self.calls = mean, self.calls + 1
        return self.last((y - self.mean).tanh() * self.table)


class Tiny(nn.Module):
    """Parameters of one number, in every number of dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.number = nn.Parameter(torch.tensor(0.5))
        self.vector = nn.Parameter(torch.randn(1))
        self.matrix = nn.Parameter(torch.randn(1, 1))
        self.cube = nn.Parameter(torch.randn(1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.number + self.vector).tanh() * self.matrix + self.cube[0]


class Deep(nn.Module):
    """Five hundred layers."""

    def __init__(self, depth: int = 500) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + 0.02 * layer(x).tanh()
        return x


class Repeated(nn.Module):
    """One layer, called five times."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.last = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, 2)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(5):
            x = x + self.cell(x).tanh()
        return self.last(x)


def _features() -> Tensor:
    return torch.randn(BATCH, FEATURES)


def _on_features(build: Callable[[], nn.Module]) -> Callable[[], Built]:
    return lambda: (build(), (_features(),))


def _quiet(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Builders that torch has put a warning on: deprecated, lazy, or for tensors without numbers."""

    def run() -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return build()

    return run


def _parametrized() -> nn.Module:
    net = nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.Tanh(), nn.Linear(FEATURES, 2))
    parametrize.register_parametrization(net[0], "weight", Symmetric())
    return net


def _spectral_norm() -> nn.Module:
    return parametrizations.spectral_norm(nn.Linear(FEATURES, 3)).eval()  # in training it draws on random vectors


def _weight_norm_hook() -> nn.Module:
    return nn.Sequential(nn.utils.weight_norm(nn.Linear(FEATURES, 3)), nn.Tanh())


def _lora() -> nn.Module:
    import peft  # here, as it takes its time

    net = nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, 2))
    # By default one factor is zero, and so is the gradient of the other.
    config = peft.LoraConfig(r=2, target_modules=["0", "2"], init_lora_weights=False)
    return peft.get_peft_model(net, config)


def _quantization_aware() -> nn.Module:
    from torch.ao import quantization

    net = nn.Sequential(nn.Linear(FEATURES, 3), nn.ReLU(), nn.Linear(3, 2))
    net.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    return quantization.prepare_qat(net.train())


def _scripted() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 3), torch.jit.script(nn.Linear(3, 3)), nn.Tanh(), nn.Linear(3, 2))


def _mixed_dtypes() -> nn.Module:
    parts = [(FEATURES, 4, torch.float32), (4, 4, torch.float16), (4, 3, torch.bfloat16), (3, 2, torch.float32)]
    return nn.Sequential(*(Converting(*part) for part in parts))


def _lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(3), nn.Tanh(), nn.LazyLinear(2))


def _lazy_after_a_forward() -> nn.Module:
    net = _lazy()
    net(_features())
    return net


def _zero_sized() -> nn.Module:
    net = nn.Sequential(nn.Linear(FEATURES, 0), nn.Linear(0, 3), nn.Tanh(), nn.Linear(3, 2))
    net.register_parameter("nothing", nn.Parameter(torch.zeros(0, 4)))
    return net


def _attention_batch_first() -> Built:
    x = torch.randn(BATCH, 5, FEATURES)
    return nn.MultiheadAttention(FEATURES, 2, batch_first=True), (x, x, x)


def _hypernetwork() -> Built:
    net, _ = KINDS["nested_hypernetwork"]()
    return net, ({"lam": torch.rand(BATCH)},)


def _half() -> Built:
    net = nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, 2))
    return net.half(), (_features().half(),)


_SAYS = {
    "linear_root": "a layer as the whole network",
    "bias_free": "a layer without bias",
    "sequential_root": "`nn.Sequential`",
    "methods": "methods beside `forward`",
    "convolution_1d": "`Conv1d`",
    "convolution_2d": "`Conv2d` with groups",
    "convolution_3d": "`ConvTranspose3d`",
    "batch_norm": "`BatchNorm2d` in training",
    "layer_norm": "`LayerNorm`",
    "group_norm": "`GroupNorm`",
    "embedding": "`Embedding` with padding",
    "sparse_embedding": "`Embedding(sparse=True)`",
    "bounded_embedding": "`Embedding(max_norm=...)`, which writes to its weight",
    "lstm": "`LSTM`",
    "gru": "`GRU`, two layers, both directions",
    "attention": "`MultiheadAttention`, the sequence first",
    "transformer_train": "`TransformerEncoderLayer` in training",
    "transformer_eval": "`TransformerEncoderLayer` in evaluation, its fast path",
    "tied_weights": "tied embedding and output layer",
    "shared_module": "one layer under two names",
    "parameter_list": "`nn.ParameterList`",
    "parameter_dict": "`nn.ParameterDict`",
    "checkpoint": "activation checkpointing inside",
    "checkpoint_reentrant": "activation checkpointing inside, reentrant",
    "frozen_layer": "a frozen layer",
    "weight_norm": "`parametrizations.weight_norm`",
    "spectral_norm_hook": "`nn.utils.spectral_norm`, the old one by a hook",
    "raw_parameters": "parameters at the root, one of them a number",
    "nested_hypernetwork": "a hypernetwork",
}

_IN_PARTS = {"lstm", "gru", "checkpoint_reentrant"}

ROWS: dict[str, Kind] = {
    name: Kind(_SAYS[name], network, whole=name not in _IN_PARTS) for name, network in KINDS.items()
} | {
    "nested_hypernetwork": Kind(_SAYS["nested_hypernetwork"], _hypernetwork),
    "attention_batch_first": Kind("`MultiheadAttention`, the batch first", _attention_batch_first),
    "weight_norm_hook": Kind("`nn.utils.weight_norm`, the old one by a hook", _on_features(_quiet(_weight_norm_hook))),
    "spectral_norm": Kind("`parametrizations.spectral_norm` in evaluation", _on_features(_spectral_norm)),
    "parametrized": Kind("a parametrization of one's own", _on_features(_parametrized)),
    "lora": Kind("a network with LoRA layers of peft, all of it generated", _on_features(_lora)),
    "lora_adapters": Kind(
        "a network with LoRA layers of peft, `include` their adapters",
        _on_features(_lora),
        arguments={"include": "*.lora_*"},
    ),
    "quantization_aware": Kind(
        "`torch.ao` quantization-aware layers",
        _on_features(_quiet(_quantization_aware)),
        own=True,
        exact=False,
        whole=False,
    ),
    "scripted": Kind("a scripted submodule", _on_features(_quiet(_scripted))),
    "scripted_excluded": Kind(
        "a scripted submodule, in `exclude`", _on_features(_quiet(_scripted)), {"exclude": "1.*"}, whole=False
    ),
    "complex": Kind("complex parameters", _on_features(Complex), own=True),
    "complex_excluded": Kind(
        "complex parameters, in `exclude`", _on_features(Complex), arguments={"exclude": "filter"}, own=True
    ),
    "half": Kind("a float16 network", _half, own=True, tolerance=2e-2),
    "mixed_dtypes": Kind("float32, float16 and bfloat16 layers", _on_features(_mixed_dtypes), own=True, tolerance=5e-2),
    "lazy": Kind("lazy layers", _on_features(_quiet(_lazy))),
    "lazy_after_a_forward": Kind("lazy layers after a first forward", _on_features(_quiet(_lazy_after_a_forward))),
    "buffers": Kind("running statistics of one's own, written in place", _on_features(Buffered)),
    "buffers_replaced": Kind(
        "running statistics of one's own, new tensors each time", _on_features(lambda: Buffered(in_place=False))
    ),
    "tiny": Kind("parameters of one number", _on_features(Tiny)),
    "zero_sized": Kind("parameters without numbers", _on_features(_quiet(_zero_sized))),
    "deep": Kind("500 layers", lambda: (Deep(), (torch.randn(BATCH, 3),))),
    "repeated": Kind("a layer called five times", _on_features(Repeated)),
}
