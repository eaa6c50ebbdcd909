"""Parameters are chosen by glob, module type or themselves; a pattern that matches nothing lists what exists."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_mip.selection import Patterns, aliases, select
from tests.module_kinds import KINDS, Shared, Tied, build, exactly


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 3))
        self.decoder = nn.Linear(3, 2)
        self.encoder_scale = nn.Parameter(torch.ones(3))


ALL = [
    "encoder_scale",
    "encoder.0.weight",
    "encoder.0.bias",
    "encoder.1.weight",
    "encoder.1.bias",
    "encoder.2.weight",
    "encoder.2.bias",
    "decoder.weight",
    "decoder.bias",
]
LISTED = ", ".join(ALL)


@pytest.mark.parametrize(
    ("include", "exclude", "chosen"),
    [
        ("*", (), ALL),
        ("*", "*", None),
        ("encoder.*", (), ALL[1:7]),
        ("encoder", (), ALL[1:7]),
        ("encoder*", (), ALL[:7]),
        ("encoder.0", (), ALL[1:3]),
        ("*.weight", (), [n for n in ALL if n.endswith(".weight")]),
        ("encoder.[02].bias", (), ["encoder.0.bias", "encoder.2.bias"]),
        (["decoder", "encoder_scale"], (), [ALL[0], *ALL[7:]]),
        (("decoder", "decoder.*"), (), ALL[7:]),
        (nn.LayerNorm, (), ALL[3:5]),
        (nn.Sequential, (), ALL[1:7]),
        ([nn.Linear, "encoder_scale"], (), [n for n in ALL if ".1." not in n]),
        ("*", nn.Linear, [ALL[0], *ALL[3:5]]),
        ("encoder", ["*.bias", nn.LayerNorm], ["encoder.0.weight", "encoder.2.weight"]),
        (Net, "decoder", ALL[:7]),
        ("", "encoder.1.bias", [n for n in ALL if n != "encoder.1.bias"]),
        ("_orig_mod.decoder.*", (), ALL[7:]),
    ],
)
def test_patterns_choose_parameters_in_the_networks_order(
    include: Patterns, exclude: Patterns, chosen: list[str] | None
) -> None:
    if chosen is None:
        with pytest.raises(ValueError, match="leaves no parameter"):
            select(Net(), include, exclude)
    else:
        assert list(select(Net(), include, exclude)) == chosen


def test_a_parameter_chooses_itself() -> None:
    net = Net()
    assert list(select(net, net.decoder.weight, ())) == ["decoder.weight"]
    assert list(select(net, [net.decoder.weight, "encoder_scale"], net.encoder_scale)) == ["decoder.weight"]
    assert list(select(net, net.decoder.parameters(), ())) == ["decoder.weight", "decoder.bias"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_of_every_kind_of_network_is_chosen_once_with_all_its_names(kind: str) -> None:
    net, _ = build(kind)
    chosen = select(net, "*", ())
    assert list(chosen) == [name for name, _ in net.named_parameters()]
    everything = [name for name, _ in net.named_parameters(remove_duplicate=False)]
    assert sorted(name for names in chosen.values() for name in names) == sorted(everything)
    assert chosen == aliases(net)


@pytest.mark.parametrize("pattern", ["embedding", "output", "embedding.weight", "output.weight", nn.Embedding])
def test_tied_weights_are_chosen_together_by_any_of_their_names(pattern: Patterns) -> None:
    chosen = select(Tied(), pattern, "*.bias")
    assert chosen == {"embedding.weight": ["embedding.weight", "output.weight"]}


def test_a_shared_module_is_excluded_by_any_of_its_names() -> None:
    chosen = select(nn.ModuleDict({"shared": Shared(), "other": nn.Linear(1, 1)}), "*", "shared.second")
    assert list(chosen) == ["other.weight", "other.bias"]


class Odd(nn.Module):
    """Parameters that no hypernetwork can generate."""

    def __init__(self) -> None:
        super().__init__()
        self.real = nn.Linear(2, 2)
        self.lazy = nn.LazyLinear(2)
        self.spectrum = nn.Parameter(torch.ones(2, dtype=torch.complex64))
        self.codes = nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self.scripted = torch.jit.script(nn.Linear(2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.real(x)


def test_what_cannot_be_generated_may_be_left_out() -> None:
    assert list(select(Odd(), "*", ["lazy", "spectrum", "codes", "scripted"])) == ["real.weight", "real.bias"]


class Many(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(1, 1) for _ in range(8))


def choose(build: Callable[[], nn.Module], include: Any, exclude: Any = ()) -> Callable[[], Iterable[str]]:
    return lambda: select(build(), include, exclude)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            choose(Net, "encodr.*"),
            ValueError,
            f"include='encodr.*' matches no parameter; there are {LISTED}. Did you mean 'encoder'?",
        ),
        (
            choose(Net, "decoder.weights"),
            ValueError,
            f"include='decoder.weights' matches no parameter; there are {LISTED}. Did you mean 'decoder.weight'?",
        ),
        (
            choose(Net, "*", "Decoder"),
            ValueError,
            f"exclude='Decoder' matches no parameter; there are {LISTED}. Did you mean 'decoder'?",
        ),
        (choose(Net, nn.Conv2d), ValueError, f"include=Conv2d matches no parameter; there are {LISTED}."),
        (
            choose(Net, nn.Parameter(torch.ones(3))),
            ValueError,
            f"include=the given parameter matches no parameter; there are {LISTED}.",
        ),
        (
            choose(Many, ["layers.0", "layers.9"]),
            ValueError,
            "include='layers.9' matches no parameter; there are layers.0.weight, layers.0.bias, layers.1.weight, "
            "layers.1.bias, layers.2.weight, layers.2.bias, layers.3.weight, layers.3.bias, layers.4.weight, "
            "layers.4.bias, layers.5.weight, layers.5.bias and 4 more. Did you mean 'layers.7'?",
        ),
        (
            choose(Net, []),
            ValueError,
            f"include=[] without exclude=() leaves no parameter; there are {LISTED}.",
        ),
        (
            choose(Net, "decoder", nn.Linear),
            ValueError,
            "include='decoder' without exclude=<class 'torch.nn.modules.linear.Linear'> leaves no parameter; there are "
            f"{LISTED}.",
        ),
        (
            choose(Net, nn.Linear(1, 1)),
            TypeError,
            "pattern Linear(in_features=1, out_features=1, bias=True): expected a glob such as 'encoder.*', a module "
            "type or a parameter.",
        ),
        (
            choose(Net, [nn.Linear(1, 1)]),
            TypeError,
            "pattern Linear(in_features=1, out_features=1, bias=True): expected a glob such as 'encoder.*', a module "
            "type or a parameter.",
        ),
        (
            choose(Net, 3),
            TypeError,
            "pattern 3: expected a glob such as 'encoder.*', a module type or a parameter.",
        ),
        (
            choose(Net, [3]),
            TypeError,
            "pattern 3: expected a glob such as 'encoder.*', a module type or a parameter.",
        ),
        (choose(nn.ReLU, "*"), ValueError, "ReLU has no parameters, so there is nothing to generate."),
        (
            choose(Odd, "lazy"),
            TypeError,
            "lazy.weight of the lazy LazyLinear has no shape yet; run the network once on a batch first.",
        ),
        (
            choose(Odd, "spectrum"),
            TypeError,
            "spectrum has dtype torch.complex64, which cannot be generated; exclude='spectrum' leaves it out.",
        ),
        (
            choose(Odd, "codes"),
            TypeError,
            "codes has dtype torch.int8, which cannot be generated; exclude='codes' leaves it out.",
        ),
        (
            choose(Odd, "scripted"),
            TypeError,
            "scripted.weight belongs to a scripted module, whose weights are fixed; exclude='scripted.weight' leaves "
            "it out.",
        ),
    ],
)
def test_a_wrong_choice_says_what_there_is(call: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=exactly(text)):
        call()
