"""export: one ``h``'s plain network as a file: weights, a checkpoint of a plain LightningModule, or a program."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_mip.batches import batch_size
from lightning_mip.binding import BOUND, bound_at, like, values_at, written
from lightning_mip.checkpoints import GIVEN_AGAIN, plain_checkpoint, read_checkpoint, saved_bind, saved_hypernetwork
from lightning_mip.example_inputs import example_inputs
from lightning_mip.hypernetize import materialize
from lightning_mip.injection import Injector, evaluated, the_injector
from lightning_mip.is_hyper import is_hyper
from lightning_mip.module import HyperLightningModule
from lightning_mip.programs import Inputs, only_batch_size, write_onnx, write_torch_export
from lightning_mip.shown import on_one_line, shown
from lightning_mip.space import HSpace

Format = Literal["state_dict", "checkpoint", "torch_export", "onnx"]
SUFFIXES: dict[str, Format] = {
    ".pt": "state_dict",
    ".pth": "state_dict",
    ".ckpt": "checkpoint",
    ".pt2": "torch_export",
    ".onnx": "onnx",
}
# What a program puts out may differ from the hypernetwork's forward by so much, relative to the largest output.
TOLERANCE = 1e-5
# Arguments of HyperLightningModule that a plain LightningModule may have, too.
_SHARED = ("self", "primary", "optimizer", "lr_scheduler")


@dataclass(frozen=True)
class Exported:
    """A file with the network of one ``h``; ``print`` it.

    Attributes:
        path: the file.
        format: what is in it.
        network: class of the network.
        h: the value, as metric names write it.
        difference: largest difference between what the file and the hypernetwork put out, relative to the largest
            output where that is above 1; without an example, between the weights themselves.
        samples: how many samples the example has; None if the weights were compared.
        batch: the only batch size that a program takes; None for any.
        attributes: path -> value of what the plug-in sets to ``h`` in the network and weights cannot hold; set it on
            the network that loads them.
    """

    path: Path
    format: str
    network: str
    h: str
    difference: float
    samples: int | None
    batch: int | None
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        compared = "the generated weights" if self.samples is None else "the output of the hypernetized network"
        on = "" if self.samples is None else f" on {self.samples} samples"
        size = f"; takes batches of {self.batch} only" if self.batch else ""
        set_there = ", ".join(f"{path} = {value}" for path, value in self.attributes.items())
        return (
            f"{self.path}: {self.format} of {self.network} at {self.h}; differs from {compared} by "
            f"{self.difference:.1e}{on}{size}" + (f"; holds no attributes: set {set_there}" if set_there else "")
        )


def export(
    source: nn.Module | str | Path,
    h: Mapping[str, Any],
    path: str | Path,
    *,
    format: Format | None = None,
    example: Any = None,
    recalibrate: Iterable[Any] | None = None,
) -> Exported:
    """Write the plain network of one ``h`` to a file, and check the file against the hypernetized network.

    Args:
        source: a hypernetized network, a LightningModule that holds one, or the path of its checkpoint, from which
            weights can be exported, but no program.
        h: component -> value.
        path: the file to write.
        format: ``state_dict``: the weights of the network, for its ``load_state_dict``; ``checkpoint``: of a plain
            LightningModule that holds the network under the same name, for its ``load_from_checkpoint``;
            ``torch_export``: a program for ``torch.export.load``; ``onnx``. None chooses by the suffix of ``path``:
            .pt, .ckpt, .pt2, .onnx.
        example: a batch (or a DataLoader, whose first one is taken) to trace and check the network with; None for the
            module's ``example_input_array``. Programs need one; weights are compared as they are without one.
        recalibrate: batches on which running statistics of BatchNorm are estimated anew at this ``h``.

    Returns:
        An `Exported`, with the difference that was found.

    Raises:
        ValueError: there is no example for a program, the format is unknown, or ``h`` is no value of the space.
        RuntimeError: the file does not put out what the hypernetized network does.
    """
    where, kind = Path(path), _format(Path(path), format)
    where.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(source, (str, Path)):
        return _of_checkpoint(source, h, where, kind, weights_alone=example is None and recalibrate is None)
    injector = the_injector(source)
    given = _one(injector.hypernet.space, h)
    inputs = example_inputs(source, given, example)
    plain = materialize(source, given, recalibrate=recalibrate).eval()
    if inputs is not None:
        _check_runs(plain, inputs)
    if kind in ("torch_export", "onnx"):
        if inputs is None:
            raise ValueError(
                f"format={kind!r} traces the network on an example, but {type(source).__name__} has no "
                "example_input_array; give a batch: export(..., example=batch), or, on the command line, a --config "
                "with a data module."
            )
        run = (write_onnx if kind == "onnx" else write_torch_export)(plain, inputs, where)
    else:
        run = _write_weights(source, injector, given, plain, where, kind)
    space = injector.hypernet.space
    exported = Exported(
        path=where,
        format=kind,
        network=type(plain).__name__,
        h=space.label(given),
        difference=_difference(injector, given, plain, run, inputs),
        samples=None if inputs is None else batch_size([*inputs[0], *inputs[1].values()]) or 1,
        batch=only_batch_size(run, inputs) if inputs and kind in ("torch_export", "onnx") else None,
        attributes=_attributes(source, injector, given, kind),
    )
    _check(exported, plain)
    return exported


def _format(path: Path, given: Format | None) -> Format:
    if given is None:
        if path.suffix not in SUFFIXES:
            raise ValueError(
                f"{path} does not say by its suffix what to write; use one of {', '.join(SUFFIXES)}, or give format: "
                f"{', '.join(get_args(Format))}."
            )
        return SUFFIXES[path.suffix]
    if given not in get_args(Format):
        raise ValueError(f"format is {shown(given)}, expected one of {', '.join(map(repr, get_args(Format)))}.")
    return given


def _check_runs(plain: nn.Module, inputs: Inputs) -> None:
    # A copy, as a forward may change buffers also in evaluation, such as the observers of quantization.
    trial = copy.deepcopy(plain)
    try:
        with torch.no_grad():
            trial(*inputs[0], **inputs[1])
    except Exception as error:  # whatever a network raises where its input does not fit
        told = on_one_line(str(error))
        raise ValueError(f"example does not fit {type(plain).__name__}, which raises: {told}") from error


def _one(space: HSpace, h: Mapping[str, Any]) -> dict[str, Tensor]:
    given = space.tensors(h)
    if space.is_batched(given):
        raise ValueError(f"h holds several values ({space.label(given)}), expected one; export one by one.")
    return given


def _of_checkpoint(
    source: str | Path, h: Mapping[str, Any], path: Path, kind: Format, *, weights_alone: bool
) -> Exported:
    """From a file, which holds the weights of the network, but not the network."""
    if kind in ("torch_export", "onnx") or not weights_alone:
        raise ValueError(
            f"{source} is a checkpoint, from which only weights can be exported, without example and recalibrate: it "
            "does not hold the network. Give the module: export(module, h, ...), or, on the command line, the run's "
            "--config."
        )
    checkpoint = read_checkpoint(source)
    hypernet, target = saved_hypernetwork(checkpoint)
    bind = saved_bind(checkpoint)
    plain = plain_checkpoint(checkpoint, hypernet, target, h, bind)
    if GIVEN_AGAIN in checkpoint:
        _make_plain(plain)
    weights = {
        key.removeprefix(f"{target}." if target else "").removeprefix("_orig_mod."): value
        for key, value in plain["state_dict"].items()
        if key.startswith(target)
    }
    torch.save(weights if kind == "state_dict" else plain, path)
    read = torch.load(path, map_location="cpu", weights_only=True)
    difference = _apart_most(_leaves(read), _leaves(weights if kind == "state_dict" else plain))
    given = _one(hypernet.space, h)
    saved = plain.get("hyper_parameters", {}) if kind == "checkpoint" else {}
    attributes = {
        name: like(0.0, given[name])
        for name in bind
        if name.startswith(f"{target}." if target else "")
        and name not in plain["state_dict"]
        and not written(saved, name.removeprefix("hparams."), given[name])
    }
    label = hypernet.space.label(given)
    return Exported(path, kind, target or "the network", label, difference, None, None, attributes)


def _write_weights(
    module: nn.Module, injector: Injector, h: Mapping[str, Tensor], plain: nn.Module, path: Path, kind: Format
) -> nn.Module:
    """Write weights, and return the network with what is in the file."""
    found = copy.deepcopy(plain)
    if kind == "state_dict":
        torch.save(plain.state_dict(), path)
        found.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        return found
    if not hasattr(module, "on_save_checkpoint"):
        raise ValueError(
            f"format='checkpoint' is for LightningModules, but {type(module).__name__} is none; use 'state_dict'."
        )
    name = next(name for name, child in module.named_modules() if child is injector.root)
    target = name.removesuffix("_orig_mod").rstrip(".")
    checkpoint = plain_checkpoint(_saved(module), injector.hypernet, target, h, getattr(module, BOUND, []))
    prefix = f"{name}." if name else ""
    checkpoint["state_dict"] |= {f"{prefix}{key}": value for key, value in plain.state_dict().items()}
    if is_hyper(module):
        _make_plain(checkpoint)
    torch.save(checkpoint, path)
    state = torch.load(path, map_location="cpu", weights_only=False)["state_dict"]  # of this process, a line above
    found.load_state_dict({key: state[f"{prefix}{key}"] for key in found.state_dict()})
    return found


def _attributes(source: nn.Module, injector: Injector, h: Mapping[str, Tensor], kind: Format) -> dict[str, Any]:
    """What the network reads beside its weights, as far as the file does not hold it."""
    if kind in ("torch_export", "onnx"):
        return {}
    saved = copy.deepcopy(dict(getattr(source, "hparams", {}))) if kind == "checkpoint" else {}
    return {
        path: value
        for path, value in values_at(injector.bound_places, h).items()
        if injector.bound_places[path][1] not in getattr(injector.bound_places[path][0], "_buffers", {})
        and not written(saved, path.removeprefix("hparams."), h[path])
    }


def _make_plain(checkpoint: dict[str, Any]) -> None:
    """Leave out what a plain LightningModule with the same network does not know."""
    ours = {*inspect.signature(HyperLightningModule.__init__).parameters, "_class_path"} - set(_SHARED)
    saved = checkpoint.get("hyper_parameters", {})
    checkpoint["hyper_parameters"] = {name: value for name, value in saved.items() if name not in ours}
    checkpoint.pop(GIVEN_AGAIN, None)


def _saved(module: Any) -> dict[str, Any]:
    """A checkpoint of a module, as a Trainer would write it of the module alone."""
    checkpoint = {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": L.__version__,
        "state_dict": module.state_dict(),
    }
    if module.hparams:
        checkpoint["hyper_parameters"] = dict(module.hparams)
    if hasattr(module, "_hparams_name"):
        checkpoint["hparams_name"] = module._hparams_name
    module.on_save_checkpoint(checkpoint)
    return checkpoint


def _difference(
    injector: Injector, h: Mapping[str, Tensor], plain: nn.Module, run: Any, inputs: Inputs | None
) -> float:
    """Between what the file and the hypernetized network put out; without inputs, between weights."""
    if inputs is None:
        return _apart_most(_leaves(run.state_dict()), _leaves(plain.state_dict()))
    args, kwargs = inputs
    at_h = injector.at(h), bound_at(injector.bound_places, h)
    with torch.no_grad(), evaluated(injector.root), _buffers_of(plain, injector.root), at_h[0], at_h[1]:
        expected = _leaves(injector.root(*args, **kwargs))
    with torch.no_grad():
        return _apart_most(_leaves(run(*args, **kwargs)), expected)


def _apart_most(found: list[Tensor], expected: list[Tensor]) -> float:
    return max((_apart(one, two) for one, two in zip(found, expected, strict=True)), default=0.0)


@contextmanager
def _buffers_of(plain: nn.Module, network: nn.Module) -> Iterator[None]:
    """Let a network run with another's running statistics, which may be estimated anew; its own stay as they are."""
    pairs = [(one._buffers, other._buffers) for one, other in zip(network.modules(), plain.modules(), strict=True)]
    # Other tensors in their place, as a buffer may change its shape, or be replaced, when the network runs.
    before = [dict(own.items()) for own, _ in pairs]
    try:
        for own, other in pairs:
            for name, buffer in other.items():
                own[name] = None if buffer is None else buffer.clone()
        yield
    finally:
        for (own, _), kept in zip(pairs, before, strict=True):
            for name, buffer in kept.items():
                own[name] = buffer


def _leaves(tree: Any) -> list[Tensor]:
    return [leaf.detach().cpu() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _apart(one: Tensor, two: Tensor) -> float:
    """The largest difference, relative to the largest number where that is above 1; infinite for other shapes."""
    if one.shape != two.shape:
        return float("inf")
    if not one.numel():
        return 0.0
    scale = max(float(two.double().abs().max()), 1.0)
    return float((one.double() - two.double()).abs().max()) / scale


def _check(exported: Exported, plain: nn.Module) -> None:
    kinds = {tensor.dtype for tensor in _leaves(plain.state_dict()) if tensor.is_floating_point()}
    tolerance = max([TOLERANCE, *(4 * torch.finfo(kind).eps for kind in kinds)])
    if not exported.difference <= tolerance:
        exported.path.unlink()
        raise RuntimeError(
            f"{exported.path} differs from the hypernetized network by {exported.difference:.1e} at {exported.h}, more "
            f"than {tolerance:.0e}, and was deleted: the network does something else when it is traced, or draws "
            "random numbers. Its weights can be exported without being run: format='state_dict', without example."
        )
