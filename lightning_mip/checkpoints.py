"""Checkpoints for one ``h`` that a module without a hypernetwork loads."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lightning_mip.binding import like, written
from lightning_mip.checks import check_finite
from lightning_mip.head_choice import head_config
from lightning_mip.hypernetwork import HyperNetwork, check_extra_state
from lightning_mip.own_arguments import is_text
from lightning_mip.shown import on_one_line, shown
from lightning_mip.space import HSpace

# Attribute of the LightningModule that holds the hypernetwork, so the first part of its keys in checkpoints.
CHILD = "hypernet"
# Attribute of a HyperLightningModule that holds its network.
PRIMARY = "primary"
# Key of a HyperLightningModule's checkpoint: the arguments which no checkpoint can hold.
GIVEN_AGAIN = "lightning_mip_given_again"
# Of the training alone, some by callbacks of Lightning.
_OF_TRAINING = (
    "callbacks",
    "optimizer_states",
    "lr_schedulers",
    "loops",
    "MixedPrecision",
    "current_model_state",
    "averaging_state",
)
_NOT_OF_HYPERNETWORK = ("include", "exclude", "force")


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint without running anything that is in it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds more than plain data, or is no checkpoint of a Trainer.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{str(path)!r} is no file, expected a checkpoint that a Trainer has written.")
    try:
        checkpoint: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # of the archive, of pickled data, of what they refuse
        raise ValueError(
            f"{path} is no checkpoint, or holds more than plain data, which loading would have to run; it was not "
            "loaded."
        ) from error
    state = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise ValueError(f"{path} has no state_dict in it, expected a checkpoint that a Trainer has written.")
    for key in ("callbacks", "hyper_parameters"):
        if not isinstance(checkpoint.get(key, {}), Mapping):
            raise ValueError(f"{path} is damaged: its {key} is {shown(checkpoint[key])}, expected a mapping.")
    found: dict[str, Any] = checkpoint
    return found


def plain_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those arguments of a hypernetwork that a checkpoint can hold, and the names of the others."""
    own = {name: value for name, value in arguments.items() if name not in _NOT_OF_HYPERNETWORK}
    plain = {name: value for name, value in own.items() if is_text(value)}
    if "head" in own:
        plain["head"] = head_config(own["head"])
    return {"arguments": plain, "other_arguments": [name for name in own if name not in plain]}


def saved_hypernetwork(checkpoint: Mapping[str, Any]) -> tuple[HyperNetwork, str]:
    """Rebuild the hypernetwork that a checkpoint holds; returns it and the path of its network in the module."""
    state = {k.removeprefix(f"{CHILD}."): v for k, v in checkpoint["state_dict"].items() if k.startswith(f"{CHILD}.")}
    of_module = _of_module(checkpoint) if "_extra_state" in state else None
    arguments, target = of_module or _of_plugin(checkpoint)
    saved: Any = state.get("_extra_state")
    check_extra_state(saved)
    shapes = {name: torch.Size(shape) for name, shape in saved["shapes"].items()}
    _check_network(checkpoint["state_dict"], target, shapes)
    try:
        hypernet = HyperNetwork(HSpace(saved["h"]), shapes, **arguments)
        hypernet.load_state_dict(state)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"The checkpoint is damaged: {on_one_line(str(error))}") from error
    return hypernet.eval(), target


def _check_network(state: Mapping[str, Any], target: str, shapes: Mapping[str, torch.Size]) -> None:
    """Refuse a network of other shapes than those that its hypernetwork generates, for which memory may not do."""
    for name, shape in shapes.items():
        keys = _keys_of(target, name)
        theta0 = next((state[key] for key in keys if key in state), None)
        if not isinstance(theta0, Tensor):
            raise ValueError(
                f"The checkpoint is damaged: it has no tensor {keys[0]}, which its hypernetwork generates."
            )
        if theta0.shape != shape:
            raise ValueError(
                f"The checkpoint is damaged: its hypernetwork generates {name} of shape {tuple(shape)}, but "
                f"{keys[0]} has shape {tuple(theta0.shape)}."
            )


def _keys_of(target: str, name: str) -> tuple[str, str]:
    """Where the state of a module has a tensor of its network, which may be compiled."""
    prefix = f"{target}." if target else ""
    return f"{prefix}{name}", f"{prefix}_orig_mod.{name}"


def saved_bind(checkpoint: Mapping[str, Any]) -> list[str]:
    """The components of ``h`` that the plug-in of a checkpoint's run has bound to attributes."""
    return list((_state_of_plugin(checkpoint) or {}).get("bind", []))


def _state_of_plugin(checkpoint: Mapping[str, Any]) -> Mapping[str, Any] | None:
    states = checkpoint.get("callbacks", {}).values()
    return next((s for s in states if isinstance(s, Mapping) and {"target", "h", "other_arguments"} <= set(s)), None)


def _of_plugin(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    own = _state_of_plugin(checkpoint)
    if own is None:
        raise ValueError(
            "The checkpoint has no state of Hypernetize: it is of a run without it, or of its weights alone "
            "(save_weights_only=True). Export from a Trainer that has loaded it, by validate(ckpt_path=...)."
        )
    if own["other_arguments"]:
        raise ValueError(
            f"The hypernetwork was made with {', '.join(own['other_arguments'])}, which the checkpoint cannot hold. "
            "Export from a Trainer that has loaded it, by validate(ckpt_path=...)."
        )
    return dict(own["arguments"]), own["target"]


def _of_module(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Any], str] | None:
    """The same of a HyperLightningModule, whose arguments are among its hyperparameters; None if it is none."""
    if GIVEN_AGAIN not in checkpoint:
        return None
    given = checkpoint.get("hyper_parameters", {}).get("hypernet", "what is no plain data")
    if given is None:
        return {}, PRIMARY
    if isinstance(given, Mapping) and "class_path" in given:
        ours = given["class_path"] in ("lightning_mip.HyperNetwork", "lightning_mip.hypernetwork.HyperNetwork")
        given = dict(given.get("init_args", {})) if ours else given["class_path"]
    if isinstance(given, Mapping):
        arguments = {name: value for name, value in given.items() if name not in _NOT_OF_HYPERNETWORK}
        arguments |= {name: _activation(value) for name, value in arguments.items() if name == "activation"}
        unknown = [name for name in arguments if name not in ("activation", "head") and not is_text(arguments[name])]
        if not unknown:
            return arguments, PRIMARY
        given = ", ".join(unknown)
    raise ValueError(
        f"The hypernetwork was made with {given}, which the checkpoint cannot hold. Export from the module itself: "
        "export(module, h, ...), or, on the command line, with the run's --config."
    )


def _activation(config: Any) -> Any:
    """Activations of PyTorch are classes that a config names."""
    path = config.get("class_path", "") if isinstance(config, Mapping) else config
    module, _, name = str(path).rpartition(".")
    kind = getattr(nn, name, None)
    if module not in ("torch.nn", "torch.nn.modules.activation") or not (
        isinstance(kind, type) and issubclass(kind, nn.Module)
    ):
        raise ValueError(
            f"The hypernetwork was made with activation {path}, which is not of torch.nn. Export from the module "
            "itself: export(module, h, ...), or, on the command line, with the run's --config."
        )
    arguments = config.get("init_args", {}) if isinstance(config, Mapping) else {}
    return functools.partial(kind, **arguments)


def plain_checkpoint(
    checkpoint: Mapping[str, Any],
    hypernet: HyperNetwork,
    target: str,
    h: Mapping[str, Any],
    bound_paths: Sequence[str] = (),
) -> dict[str, Any]:
    """Turn a checkpoint of a run with the plug-in into one of the original module.

    Args:
        checkpoint: the checkpoint; it is left as it is.
        hypernet: its hypernetwork.
        target: path of the hypernetized network.
        h: component -> value.
        bound_paths: components that are attributes of the module.

    Returns:
        The checkpoint with ``theta(h)`` as weights, and what is bound of ``h`` written into its hyperparameters and
        buffers where they have it.
    """
    given = hypernet.space.tensors(h)
    if hypernet.space.is_batched(given):
        raise ValueError(f"h holds several values ({hypernet.space.label(given)}), expected one; export one by one.")
    plain = {key: value for key, value in checkpoint.items() if key not in _OF_TRAINING}
    state = {key: value for key, value in checkpoint["state_dict"].items() if not key.startswith(f"{CHILD}.")}
    buffers = {path: like(state[path], given[path]) for path in bound_paths if path in state}
    plain["state_dict"] = {**state, **buffers, **_weights(state, hypernet, target, given)}
    saved = copy.deepcopy(plain.get("hyper_parameters", {}))
    if "hyper_parameters" in plain:
        plain["hyper_parameters"] = saved
    unwritten = [path for path in bound_paths if not written(saved, path.removeprefix("hparams."), given[path])]
    missing = [path for path in unwritten if path not in state]
    if missing:
        values = ", ".join(f"{path} = {hypernet.space[path].text(given[path])}" for path in missing)
        rank_zero_info(
            "A checkpoint holds hyperparameters and buffers alone; after loading it, set what else held h yourself: "
            f"{values}."
        )
    return plain


def start_from_plain(module: nn.Module, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
    """Let a checkpoint of a run without the plug-in load: theta0 starts there, the hypernetwork is new."""
    hypernet = getattr(module, CHILD, None)
    if hypernet is None or any(key.startswith(f"{prefix}{CHILD}.") for key in state_dict):
        return
    state_dict.update({f"{prefix}{CHILD}.{key}": value for key, value in hypernet.state_dict().items()})
    rank_zero_info("The checkpoint is of a run without Hypernetize: theta0 starts from it, the hypernetwork is new.")


def _weights(
    state: Mapping[str, Tensor], hypernet: HyperNetwork, target: str, h: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    with torch.no_grad():
        deltas = hypernet(h)
    weights: dict[str, Tensor] = {}
    own: dict[str, Tensor] = {}
    for name, delta in deltas.items():
        key = next(key for key in _keys_of(target, name) if key in state)
        theta0 = state[key]
        change = delta.to(theta0)
        weight = own[name] = theta0 + change if hypernet.residual else change
        # Tied weights stand under several names and share their storage.
        weights.update({alias: weight for alias, other in state.items() if other is theta0 or _shares(other, theta0)})
    check_finite(own, hypernet.space, h)
    return weights


def _shares(one: Any, other: Tensor) -> bool:
    if not isinstance(one, Tensor) or not other.numel():
        return False
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape
