"""Attaching a hypernetwork to a network inside somebody else's LightningModule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_mip.binding import BOUND, check_path, keep_on_each_rank, places_inside
from lightning_mip.checkpoints import CHILD, start_from_plain
from lightning_mip.hypernetize import hypernetize
from lightning_mip.hypernetwork import HyperNetwork
from lightning_mip.injection import Injector, injectors
from lightning_mip.selection import select
from lightning_mip.space import HSpace
from lightning_mip.surroundings import check_ties

# Attribute of the LightningModule that holds what it was hypernetized with.
_RECORD = "_hypernetized_with"


def is_there(pl_module: Any, target: str | None) -> bool:
    """Whether the network is there already; one that is not named may not be the only one in the end."""
    try:
        return target is not None and pl_module.get_submodule(target) is not None
    except AttributeError:
        return False


def attach(
    pl_module: Any, target: str | None, space: HSpace, arguments: Mapping[str, Any], bound_paths: Sequence[str]
) -> tuple[str, Injector]:
    """Attach once; a module that has been attached before (fit again, test after fit) stays as it is.

    Args:
        pl_module: the LightningModule.
        target: path of the network in it; None for its only child that has parameters.
        space: the priors of ``h``.
        arguments: of `hypernetize`.
        bound_paths: attributes of the module that are to hold their components of ``h``.

    Returns:
        The path of the network, and its injector.
    """
    own = getattr(pl_module, CHILD, None)
    if own is not None and not isinstance(own, HyperNetwork):
        raise MisconfigurationException(
            f"{type(pl_module).__name__} has an attribute {CHILD!r} of its own, where Hypernetize keeps the "
            "hypernetwork; rename it."
        )
    path, network = _find(pl_module, target)
    for name in bound_paths:
        check_path(pl_module, name, space.center()[name])
    record = {"h": space, **arguments}
    found = injectors(pl_module)
    injector = next((each for each in found if each.root is network and each.hypernet is own), None)
    if injector is not None:
        _check_equal(path, getattr(pl_module, _RECORD), record)
    elif found:
        raise MisconfigurationException(
            f"{type(pl_module).__name__} holds a hypernetized network already; mip.dehypernetize it first, as "
            "Hypernetize attaches the one hypernetwork itself."
        )
    else:
        if own is not None:  # of a network that is gone, or was dehypernetized
            delattr(pl_module, CHILD)
        check_ties(pl_module, path, network, select(network, arguments["include"], arguments["exclude"]))
        setattr(pl_module, CHILD, hypernetize(network, space, **arguments))
        setattr(pl_module, _RECORD, record)
        injector = next(each for each in injectors(network) if each.root is network)
        pl_module.register_load_state_dict_pre_hook(start_from_plain)
    setattr(pl_module, BOUND, list(bound_paths))
    keep_on_each_rank(pl_module, bound_paths)
    injector.bound_places = places_inside(pl_module, network, bound_paths)
    return path, injector


def _find(pl_module: Any, target: str | None) -> tuple[str, nn.Module]:
    if target is None:
        found = {
            name: m for name, m in pl_module.named_children() if name != CHILD and any(True for _ in m.parameters())
        }
        if len(found) != 1:
            raise MisconfigurationException(
                f"target is None, but {type(pl_module).__name__} has {len(found)} children with parameters: "
                f"{', '.join(found) or 'none'}; name one as target."
            )
        target = next(iter(found))
    try:
        module: nn.Module = pl_module.get_submodule(target)
    except AttributeError as error:
        listed = ", ".join(name for name, _ in pl_module.named_children()) or "none"
        raise MisconfigurationException(
            f"target is {target!r}, but {type(pl_module).__name__} has no such module; its children are {listed}."
        ) from error
    return target, getattr(module, "_orig_mod", module)


def _check_equal(path: str, record: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    differing = [name for name in {**record, **mine} if _listed(record.get(name)) != _listed(mine.get(name))]
    if differing:
        theirs, ours = (", ".join(f"{name}={r.get(name)!r}" for name in differing) for r in (record, mine))
        raise MisconfigurationException(
            f"The network {path!r} is hypernetized already, with {theirs}; this callback has {ours}. Use the "
            "same arguments, or mip.dehypernetize it first."
        )


def _listed(value: Any) -> Any:
    """A config gives lists where Python code gives tuples."""
    return list(value) if isinstance(value, tuple) else value.config() if isinstance(value, HSpace) else value
