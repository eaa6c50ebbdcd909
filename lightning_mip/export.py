"""Checkpoints for one ``h`` that a module without a hypernetwork loads."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_mip.binding import written
from lightning_mip.hypernetwork import HyperNetwork
from lightning_mip.space import HSpace

_OF_TRAINING = ("callbacks", "optimizer_states", "lr_schedulers", "loops", "MixedPrecision")
_NOT_OF_HYPERNETWORK = ("include", "exclude", "force", "hypernet")


def read_checkpoint(source: Any) -> dict[str, Any]:
    """Read a checkpoint from a path, or take that of a Trainer."""
    if isinstance(source, (str, Path)):
        checkpoint: dict[str, Any] = torch.load(source, map_location="cpu", weights_only=True)
        return checkpoint
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "now.ckpt"
        source.save_checkpoint(path, weights_only=True)
        # Written by this process a line above, so it may hold the module's hyperparameters of any type.
        own: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False)
        return own


def checkpoint_target(checkpoint: Mapping[str, Any]) -> str:
    """The path of the hypernetized network, as the plug-in saved it."""
    for state in checkpoint.get("callbacks", {}).values():
        if isinstance(state, Mapping) and {"target", "h", "bind"} <= set(state):
            return str(state["target"])
    raise ValueError("The checkpoint is not of a run with Hypernetize: no callback state names its target.")


def plain_checkpoint(
    checkpoint: Mapping[str, Any], h: Mapping[str, Tensor], target: str, child: str, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Turn a checkpoint of a run with the plug-in into one of the original module.

    Args:
        checkpoint: with the hypernetwork's keys under ``child``.
        h: component -> value.
        target: path of the hypernetized network.
        child: attribute that holds the hypernetwork.
        arguments: those that the hypernetwork was made with.

    Returns:
        The checkpoint with ``theta(h)`` as weights, and ``h`` written into its hyperparameters where they have it.
    """
    state = dict(checkpoint["state_dict"])
    own = {key.removeprefix(f"{child}."): state.pop(key) for key in list(state) if key.startswith(f"{child}.")}
    if not own:
        raise ValueError(f"The checkpoint has no keys {child}.*: it is not of a run with Hypernetize.")
    state.update(_weights(state, own, h, target, arguments))
    plain = {key: value for key, value in checkpoint.items() if key not in _OF_TRAINING}
    plain["state_dict"] = state
    if "hyper_parameters" in plain:
        # One level is copied, which is where `hparams.name` and `name` live.
        plain["hyper_parameters"] = type(plain["hyper_parameters"])(plain["hyper_parameters"])
        for path, value in h.items():
            name = path.removeprefix("hparams.")
            if name.split(".")[0] in plain["hyper_parameters"]:
                written(plain["hyper_parameters"], name, value)
    return plain


def _weights(
    state: Mapping[str, Tensor],
    own: Mapping[str, Any],
    h: Mapping[str, Tensor],
    target: str,
    arguments: Mapping[str, Any],
) -> dict[str, Tensor]:
    made_for = own["_extra_state"]
    shapes = {name: torch.Size(shape) for name, shape in made_for["shapes"].items()}
    kept = {key: value for key, value in arguments.items() if key not in _NOT_OF_HYPERNETWORK}
    hypernet = HyperNetwork(HSpace(made_for["h"]), shapes, **kept).eval()
    hypernet.load_state_dict(dict(own))
    with torch.no_grad():
        deltas = hypernet(h)
    weights = {}
    for name, delta in deltas.items():
        key = next(k for k in (f"{target}.{name}", f"{target}._orig_mod.{name}") if k in state)
        theta0 = state[key]
        weight = (theta0 + delta if hypernet.residual else delta).to(theta0.dtype)
        # Tied weights stand under several names and share their storage.
        weights.update({k: weight for k, v in state.items() if v is theta0 or _shares(v, theta0)})
    return weights


def _shares(one: Any, other: Tensor) -> bool:
    if not isinstance(one, Tensor) or not other.numel():
        return False
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape
