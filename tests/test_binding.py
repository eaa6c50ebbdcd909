"""Binding: attributes of a module that hold the values of h inside a block."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import lightning as L
import pytest
import torch
from torch import nn

from lightning_mip.binding import bound, check_path, like, written


class Focal(nn.Module):
    """A loss with an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = 0.5
        self.register_buffer("gamma", torch.tensor(2.0, dtype=torch.float64))


@dataclass(frozen=True)
class Frozen:
    """Settings that cannot be changed."""

    lam: float = 1.0


class Pair(NamedTuple):
    """The same."""

    lam: float


class Module(L.LightningModule):
    """Holds a hyperparameter in every place that people keep one."""

    def __init__(self, reg_weight: float = 0.1, sizes: tuple[int, ...] = (3,)) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lam, self.whole, self.flag, self.unset, self.word = 0.25, 3, False, None, "relu"
        self.weights, self.pair = [1.0, 2.0, 3.0], (0.5, 0.5)
        self.tensor = torch.tensor([[0.1]], dtype=torch.float64)
        self.counts = torch.tensor(2)
        self.net = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.1))
        self.loss = Focal()
        self.criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
        self.by_name = nn.ModuleDict({"drop": nn.Dropout(0.2)})
        self.args = Namespace(noise=0.1)
        self.config = {"loss": {"lam": 1.0}, "frozen": Frozen()}
        self.named = Pair(1.0)

    @property
    def scale(self) -> float:
        return 2 * self.lam

    @property
    def half(self) -> float:
        return self.lam / 2

    @half.setter
    def half(self, value: float) -> None:
        self.lam = 2 * value


def read(module: Any, path: str) -> Any:
    for part in path.split("."):
        module = module[part] if isinstance(module, dict) else getattr(module, part)
    return module


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("lam", 0.1, 0.1),
        ("whole", 5.0, 5),
        ("whole", 0.3, 0.3),
        ("flag", 1.0, True),
        ("unset", 0.3, 0.3),
        ("half", 0.3, 0.3),
        ("hparams.reg_weight", 0.3, 0.3),
        ("net.1.p", 0.3, 0.3),
        ("by_name.drop.p", 0.3, 0.3),
        ("loss.alpha", 0.3, 0.3),
        ("criterion.label_smoothing", 0.3, 0.3),
        ("args.noise", 0.3, 0.3),
        ("config.loss.lam", 0.3, 0.3),
        ("weights", [0.2, 0.3, 0.5], [0.2, 0.3, 0.5]),
        ("pair", [0.2, 0.8], (0.2, 0.8)),
    ],
)
def test_a_python_value_stays_one_of_its_kind(path: str, value: Any, expected: Any) -> None:
    module = Module()
    before = read(module, path)
    check_path(module, path, torch.tensor(value))
    with bound(module, {path: torch.tensor(value)}):
        assert read(module, path) == expected
        assert type(read(module, path)) is type(expected)
    assert read(module, path) == before
    assert type(read(module, path)) is type(before)


@pytest.mark.parametrize("path", ["tensor", "loss.gamma"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_tensor_stays_one_of_its_dtype_device_and_shape(path: str, dtype: torch.dtype) -> None:
    module = Module().to(dtype)
    module.tensor = module.tensor.to(dtype)
    before = read(module, path)
    check_path(module, path, torch.tensor(0.5))
    with bound(module, {path: torch.tensor(0.5)}):
        assert torch.equal(read(module, path), torch.full_like(before, 0.5))
        assert read(module, path).dtype == dtype
        assert list(dict(module.named_buffers())) == ["loss.gamma"]
    assert read(module, path) is before
    assert like(torch.zeros(2, device="meta"), torch.ones(2)).device.type == "meta"


def test_a_write_to_the_attribute_leaves_h_alone() -> None:
    module, h = Module(), {"loss.gamma": torch.tensor(0.5)}
    with bound(module, h):
        module.loss.gamma.fill_(2)
    assert h == {"loss.gamma": torch.tensor(0.5)}


def test_what_a_step_writes_to_a_bound_tensor_does_not_reach_the_values() -> None:
    module, value = Module(), torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    with bound(module, {"loss.gamma": value}):
        (module.loss.gamma * 3).backward()
        with torch.no_grad():
            module.loss.gamma.mul_(2)
    assert value == 0.5
    assert value.grad == 3


def test_a_tensor_of_integers_holds_whole_numbers_only() -> None:
    assert like(torch.tensor(2), torch.tensor(5.0)).dtype == torch.int64
    assert like(torch.tensor(2), torch.tensor(0.3)) == torch.tensor(0.3)


def test_a_number_has_the_digits_of_its_dtype() -> None:
    assert like(1.0, torch.tensor(0.1)) == 0.1
    near = torch.linspace(1000, 1000.1, 1000)  # single precision has that many numbers there
    assert torch.equal(torch.tensor([like(1.0, value) for value in near]), near)
    third = torch.tensor(1 / 3, dtype=torch.float64)
    assert like(1.0, third) == 1 / 3


def test_several_attributes_are_put_back_after_an_error_and_blocks_nest() -> None:
    module = Module()
    h = {"lam": torch.tensor(0.7), "loss.alpha": torch.tensor(0.9)}
    with bound(module, h), bound(module, {"lam": torch.tensor(0.8)}):
        assert (module.lam, module.loss.alpha) == (0.8, 0.9)
    with pytest.raises(KeyError), bound(module, h):
        raise KeyError
    assert (module.lam, module.loss.alpha) == (0.25, 0.5)


def test_an_attribute_that_the_step_changes_is_put_back_too() -> None:
    module = Module()
    with bound(module, {"lam": torch.tensor(0.7)}):
        module.lam *= 0.9
    assert module.lam == 0.25


def test_a_mapping_that_has_the_path_is_written_to() -> None:
    config: dict[str, Any] = {"lam": 1, "loss": {"lam": 0.5}, "name": "focal"}
    for path in ("lam", "loss.lam", "name.alpha", "other", "other.lam"):
        written(config, path, torch.tensor(0.3))
    assert config == {"lam": 0.3, "loss": {"lam": 0.3}, "name": "focal"}


def _check(path: str, value: Any = 0.5) -> Callable[[], None]:
    return lambda: check_path(Module(), path, torch.as_tensor(value))


_OR = "Name one that the step reads, or pass bind=False if nothing in the module reads this component."
_LEAVE = "Name the attribute that it is made from, or leave it out of bind."


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (_check("lamb"), f"h has 'lamb', but Module has no such attribute; near are lam. {_OR}"),
        (
            _check("reg_wieght"),
            f"h has 'reg_wieght', but Module has no such attribute; near are hparams.reg_weight, weights. {_OR}",
        ),
        (
            _check("hparams.reg"),
            f"h has 'hparams.reg', but Module.hparams has no such attribute; near are hparams.reg_weight, "
            f"hparams.sizes. {_OR}",
        ),
        (
            _check("loss.alfa"),
            f"h has 'loss.alfa', but Module.loss has no such attribute; near are loss.alpha, loss.gamma. {_OR}",
        ),
        (
            _check("net.dropout.p"),
            f"h has 'net.dropout.p', but Module.net has no such attribute; near are net.0, net.1. {_OR}",
        ),
        (
            _check("config.los.lam"),
            "h has 'config.los.lam', but Module.config has no such attribute; near are config.loss, config.frozen. "
            + _OR,
        ),
        (
            _check("zzz"),
            "h has 'zzz', but Module has no such attribute; near are hparams.reg_weight, hparams.sizes, lam, whole, "
            f"unset, weights, pair, tensor, counts, args, config, named. {_OR}",
        ),
        (_check("lam.x"), f"h has 'lam.x', but Module.lam has no such attribute; near are none. {_OR}"),
        (
            _check("datamodule.noise"),
            "h has 'datamodule.noise', which is on the data module: batches are loaded before h is drawn, partly by "
            "workers that hold copies, so they would not see it. Let training_step apply it to the batch, and name an "
            "attribute of the LightningModule.",
        ),
        (
            _check("trainer.callbacks"),
            "h has 'trainer.callbacks', which is on the Trainer: its settings and callbacks act on the whole run, not "
            "on one batch. Name an attribute of the LightningModule that its training_step reads.",
        ),
        (
            _check("net.0.weight"),
            "h has 'net.0.weight', which is a trained parameter; name a hyperparameter instead.",
        ),
        (
            _check("word"),
            "h has 'word', which is of type str, expected a number, a tensor or a list of numbers; name one that the "
            "step reads, or leave it out of bind.",
        ),
        (
            _check("net"),
            "h has 'net', which is of type Sequential, expected a number, a tensor or a list of numbers; name one that "
            "the step reads, or leave it out of bind.",
        ),
        (
            _check("weights", 0.5),
            "h has 'weights', whose values have shape (), but the attribute has shape (3,); give it a prior of that "
            "many numbers.",
        ),
        (
            _check("lam", [0.5, 0.5]),
            "h has 'lam', whose values have shape (2,), but the attribute has shape (); give it a prior of that many "
            "numbers.",
        ),
        (
            _check("scale"),
            "h has 'scale', which cannot be set: property 'scale' of 'Module' object has no setter. " + _LEAVE,
        ),
        (
            _check("config.frozen.lam"),
            "h has 'config.frozen.lam', which cannot be set: cannot assign to field 'lam'. " + _LEAVE,
        ),
        (_check("named.lam"), "h has 'named.lam', which cannot be set: can't set attribute. " + _LEAVE),
    ],
)
def test_messages(act: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        act()
    assert str(caught.value) == message
