"""Weights that a module uses inside and outside of its hypernetized network."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


def tie_across(module: nn.Module, network: nn.Module, generated: Iterable[str]) -> tuple[str, str] | None:
    """Find a generated parameter that a part of ``module`` outside of ``network`` holds as well.

    Lists of parameters, which compute nothing, do not count.

    Returns:
        Its name in the network, and the one outside; None if there is none.
    """
    # Not by attributes, in which generated weights may stand.
    parameters = dict(network.named_parameters(remove_duplicate=False))
    names = {id(parameters[name]): name for name in generated}
    inside = {id(part) for part in network.modules()}
    for path, part in module.named_modules():
        if id(part) in inside or isinstance(part, (nn.ParameterList, nn.ParameterDict)):
            continue
        for attribute, parameter in part._parameters.items():
            if id(parameter) in names:
                return names[id(parameter)], f"{path}.{attribute}" if path else attribute
    return None


def tie_text(module: nn.Module, network: str, tie: tuple[str, str], way_out: str) -> str:
    """Say what is wrong with a tie, and the ways out: ``way_out``, and leaving the weight out."""
    name, outside = tie
    return (
        f"{type(module).__name__} uses the weight {name} of its {network} outside of it too, as {outside}, where no "
        f"weight is generated: one weight would be two. {way_out}, or leave the weight out (exclude={name!r})."
    )
