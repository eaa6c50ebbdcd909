"""Optimizers and schedulers from what makes them, with errors that say which argument of theirs is wrong."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from torch.optim import Optimizer

from lightning_mip.shown import shown

# What torch's constructors end in with a value that they do not check.
_OF_VALUES = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError)


def check_makes(argument: str, make: object, example: str) -> None:
    """Raise TypeError where what should make an optimizer or a scheduler is one already, or something else."""
    if make is not None and not callable(make):
        raise TypeError(f"{argument} is of type {type(make).__name__}, expected what makes one, such as {example}.")


def called(argument: str, make: Callable[[Any], Any], given: Any) -> Any:
    """What ``make(given)`` makes.

    Args:
        argument: the name of ``make``, for errors.
        make: makes an optimizer from parameters, or a scheduler from an optimizer.
        given: what it is made from.

    Raises:
        ValueError: it cannot be made, or has None where torch would fail in some later step.
    """
    try:
        made = make(given)
    except _OF_VALUES as error:
        # The first line, as torch goes on with advice on resuming; of a KeyError without the quotation marks.
        told = [*str(error.args[0] if error.args else "").strip().splitlines(), type(error).__name__]
        raise ValueError(f"{argument} cannot be made: {_being_made(error.__traceback__)}{told[0]}") from error
    scheduler = made.get("scheduler") if isinstance(made, Mapping) else made  # the mapping is Lightning's
    values = made.defaults if isinstance(made, Optimizer) else getattr(scheduler, "__dict__", {})
    for name, default in _arguments_of_torch(type(scheduler)).items():
        if name in values and values[name] is None and default is not None:
            raise ValueError(
                f"{argument} cannot be made: {type(scheduler).__name__} has None for {name}, which torch cannot use; "
                "give it a value, or leave it out if it has a default."
            )
    return made


def _arguments_of_torch(kind: type) -> dict[str, Any]:
    """The arguments of the constructors that torch has written, with their defaults."""
    constructors = [vars(base)["__init__"] for base in kind.__mro__ if "__init__" in vars(base) and _is_of_torch(base)]
    return {
        name: parameter.default
        for constructor in constructors
        for name, parameter in inspect.signature(constructor).parameters.items()
    }


def _is_of_torch(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "torch"


def _being_made(traceback: TracebackType | None) -> str:
    """The outermost object of torch whose constructor an error comes from, with what it was given; empty for none."""
    while traceback is not None:
        names, _, _, values = inspect.getargvalues(traceback.tb_frame)
        own = values.get(names[0]) if names and traceback.tb_frame.f_code.co_name == "__init__" else None
        if any(map(_is_of_torch, type(own).__mro__)):
            defaults = {name: each.default for name, each in inspect.signature(type(own)).parameters.items()}
            # The first argument is what it is made from.
            changed = [name for name in names[2:] if values.get(name) is not defaults.get(name)]
            return f"{type(own).__name__}({', '.join(f'{name}={shown(values.get(name))}' for name in changed)}): "
        traceback = traceback.tb_next
    return ""
