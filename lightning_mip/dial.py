"""Values of ``h`` as one writes them on a command line: ``lam=0.3``, ``lam=0:1:21``, ``phi=log:1e-3:10:9``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_mip.priors import Categorical, Prior
from lightning_mip.space import HSpace

_Form = Callable[[str, HSpace], str]


def parse_h(strings: Sequence[str], space: HSpace, option: str = "--h") -> dict[str, Tensor]:
    """Read one ``h`` from strings such as ``lam=0.3``.

    Args:
        strings: ``NAME=VALUE`` each, or several with commas between, as in names of metrics: ``lam=0.3,phi=1``. The
            numbers of a preference vector have colons between them: ``weights=0.2:0.8``.
        space: what components there are; all must be given.
        option: name of the option that the strings come from, for error messages.

    Returns:
        name -> tensor, in the order of the space.

    Raises:
        ValueError: in one line, with the right form and the names that exist.

    >>> from lightning_mip import HSpace, LogUniform, Uniform
    >>> parse_h(["lam=0.3", "phi=1e-2"], HSpace({"lam": Uniform(0, 1), "phi": LogUniform(1e-3, 10)}))
    {'lam': tensor(0.3000), 'phi': tensor(0.0100)}
    """
    parts = [part for string in _listed(strings) for part in string.split(",")]
    texts = _by_name(parts, space, option, _value_form)
    missing = [name for name in space if name not in texts]
    if missing:
        given = f"given were {', '.join(texts)}" if texts else "nothing was given"
        raise ValueError(
            f"{option} lacks {', '.join(missing)}: {given}, expected {_example(space)} with all components of h."
        )
    return {name: _value(text, name, space, option, _value_form) for name, text in texts.items()}


def parse_grid(strings: Sequence[str], space: HSpace, option: str = "--grid") -> dict[str, Tensor]:
    """Read the values of each component from strings such as ``lam=0:1:21``.

    Args:
        strings: ``NAME=LOW:HIGH:POINTS``; ``NAME=log:LOW:HIGH:POINTS`` for equal factors between the values;
            ``NAME=POINTS`` for that many over the component's prior (along each edge, for preference vectors);
            ``NAME=at:VALUE,VALUE`` for the values themselves.
        space: what components there are; those that are not named stay at the center of their priors.
        option: name of the option that the strings come from, for error messages.

    Returns:
        name -> values, shape ``(points, *event_shape)``, in the order of the space.

    Raises:
        ValueError: in one line, with the right form and the names that exist.

    >>> from lightning_mip import HSpace, LogUniform, Uniform
    >>> parse_grid(["phi=log:1e-2:1:3"], HSpace({"lam": Uniform(0, 1), "phi": LogUniform(1e-3, 10)}))
    {'lam': tensor([0.5000]), 'phi': tensor([0.0100, 0.1000, 1.0000])}
    """
    texts = _by_name(_listed(strings), space, option, _grid_form)
    values = {name: space[name].tensor(space[name].center()).unsqueeze(0) for name in space if name not in texts}
    values |= {name: _values(text, name, space, option) for name, text in texts.items()}
    dtype = torch.get_default_dtype()
    return {name: values[name].to(dtype) if values[name].is_floating_point() else values[name] for name in space}


def _listed(strings: Sequence[str]) -> list[str]:
    return [strings] if isinstance(strings, str) else list(strings)


def _by_name(parts: Sequence[str], space: HSpace, option: str, form: _Form) -> dict[str, str]:
    """Split ``NAME=TEXT`` strings, in the order of the space."""
    texts: dict[str, str] = {}
    for part in parts:
        name, equals, text = (piece.strip() for piece in part.partition("="))
        if not equals or not name or not text:
            raise ValueError(f"{option} {part}: expected {form(next(iter(space)), space)}; {_exist(space)}.")
        if name not in space:
            raise ValueError(f"{option} {part}: {space.unknown(name)}")
        if name in texts:
            raise ValueError(f"{option} {part}: {name} is given twice, expected once.")
        texts[name] = text
    return {name: texts[name] for name in space if name in texts}


def _values(text: str, name: str, space: HSpace, option: str) -> Tensor:
    """The values of one component."""
    kind, colon, rest = text.partition(":")
    if kind == "at" and colon:
        return torch.stack([_value(value, name, space, option, _grid_form) for value in rest.split(",")])
    try:
        if colon:
            low, high, points = (rest if kind == "log" else text).split(":")
            spaced = _spaced(float(low), float(high), _count(points), log=kind == "log")
            if space[name].event_shape:
                raise ValueError
        else:
            count = _count(text)
    except ValueError as error:
        raise ValueError(_wrong(text, name, space, option, _grid_form)) from error
    if not colon:
        return _told(lambda: space[name].grid(count), text, name, option)
    return _supported(spaced, text, name, space, option)


def _spaced(low: float, high: float, points: int, *, log: bool) -> Tensor:
    if not (math.isfinite(low) and math.isfinite(high) and (points > 1 or low == high) and (low > 0 or not log)):
        raise ValueError
    if not log:
        return torch.linspace(low, high, points, dtype=torch.float64)
    values = torch.linspace(math.log(low), math.log(high), points, dtype=torch.float64).exp()
    values[0], values[-1] = low, high  # as they were written, not as the logarithm rounds them
    return values


def _count(text: str) -> int:
    points = int(text)
    if points < 1:
        raise ValueError
    return points


def _value(text: str, name: str, space: HSpace, option: str, form: _Form) -> Tensor:
    try:
        numbers = [int(part) if part.strip().lstrip("+-").isdigit() else float(part) for part in text.split(":")]
    except ValueError as error:
        raise ValueError(_wrong(text, name, space, option, form)) from error
    if len(numbers) != max(math.prod(space[name].event_shape), 1):
        raise ValueError(_wrong(text, name, space, option, form))
    value = space[name].tensor(numbers if space[name].event_shape else numbers[0])
    return _supported(value, text, name, space, option)


def _supported(values: Tensor, text: str, name: str, space: HSpace, option: str) -> Tensor:
    return _told(lambda: HSpace({name: space[name]}).tensors({name: values})[name], text, name, option)


def _told(compute: Callable[[], Tensor], text: str, name: str, option: str) -> Tensor:
    """Compute the values; an error that a prior raises is told with the option."""
    try:
        return compute()
    except ValueError as error:
        raise ValueError(f"{option} {name}={text}: {error}") from error


def _wrong(text: str, name: str, space: HSpace, option: str, form: _Form) -> str:
    return f"{option} {name}={text}: expected {form(name, space)}; {_exist(space)}."


def _exist(space: HSpace) -> str:
    names = ", ".join(space)
    return f"the components of h are {names}" if len(space) > 1 else f"the one component of h is {names}"


def _example(space: HSpace) -> str:
    return ",".join(f"{name}={_number(space[name])}" for name in space)


def _value_form(name: str, space: HSpace) -> str:
    return f"a value such as {name}={_number(space[name])}"


def _grid_form(name: str, space: HSpace) -> str:
    """The ways to give a grid, with numbers that this component's prior allows."""
    prior = space[name]
    values = prior.grid(3)
    listed = ",".join(map(_written, values[:3]))
    some = f"{name}=5 (points over its prior) or {name}=at:{listed} (values)"
    if prior.event_shape or isinstance(prior, Categorical):
        return some
    low, high = _written(values[0]), _written(values[-1])
    log = f"{name}=log:{low}:{high}:9 (equal factors), " if float(values[0]) > 0 else ""
    return f"{name}={low}:{high}:21 (low:high:points), {log}{some}"


def _number(prior: Prior) -> str:
    # The center of a preference vector has thirds, which do not sum to 1 as written.
    return _written(prior.grid(3)[1] if prior.event_shape else prior.center())


def _written(value: Tensor) -> str:
    numbers = value.tolist()
    return ":".join(f"{number:.3g}" for number in (numbers if isinstance(numbers, list) else [numbers]))
