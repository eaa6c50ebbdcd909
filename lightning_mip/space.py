"""HSpace: the named priors of ``h`` together."""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from lightning_mip.as_prior import as_prior
from lightning_mip.draws import uniforms
from lightning_mip.encodings import encode
from lightning_mip.priors import FLOAT32_DIGITS, MAX_POINTS, Prior, number_text
from lightning_mip.shown import shown

_RESERVED = "=,/"


class HSpace(Mapping[str, Prior]):
    """The space of ``h``: a mapping from component names to priors, in sorted order of the names.

    The order is that of the encoded vector; sorting makes it independent of how a config lists the components.

    Args:
        priors: component name -> `Prior` or ``torch.distributions`` object. Names may be dotted attribute paths.

    >>> from lightning_mip import HSpace, LogUniform, Uniform
    >>> space = HSpace({"lam": Uniform(0, 1), "phi": LogUniform(0.1, 10)})
    >>> space.encode({"lam": 0.0, "phi": 1.0})
    tensor([0.7071, 0.0000, 0.5000, 0.5000])
    >>> space.label(space.grid(2)[1])
    'lam=0,phi=10'
    """

    def __init__(self, priors: Mapping[str, Prior | Distribution | Mapping[str, Any]]) -> None:
        if not isinstance(priors, Mapping):
            raise TypeError(f"h is {shown(priors)}, expected a mapping such as {{'lam': Uniform(0, 1)}}.")
        if not priors:
            raise ValueError("h is empty, expected at least one component such as {'lam': Uniform(0, 1)}.")
        for name in priors:
            if not isinstance(name, str) or not name or any(mark in name for mark in _RESERVED):
                raise ValueError(
                    f"h has a component named {shown(name)}, expected a non-empty string without {' '.join(_RESERVED)} "
                    "(they separate values in metric names)."
                )
            if not name.isprintable() or name != name.strip():
                raise ValueError(
                    f"h has a component named {name!r}, expected a name without line breaks or other control "
                    "characters, and without spaces at its ends."
                )
        self._priors = {name: as_prior(name, priors[name]) for name in sorted(priors)}

    def __getitem__(self, name: str) -> Prior:
        return self._priors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._priors)

    def __len__(self) -> int:
        return len(self._priors)

    def __repr__(self) -> str:
        return f"HSpace({self._priors})"

    def sample(
        self,
        *,
        seed: int,
        rank: int = 0,
        step: int,
        n: int | None = None,
        strategy: str = "random",
        world_size: int = 1,
    ) -> dict[str, Tensor]:
        """Draw ``h``: a function of its arguments alone, with no hidden state.

        Args:
            seed: seed of the run.
            rank: global rank; ranks draw different values.
            step: training batch counter.
            n: how many; None draws one, without batch dimension.
            strategy: ``random``, ``sobol`` or ``stratified``.
            world_size: number of ranks, which share one low-discrepancy sequence.

        Returns:
            name -> tensor of shape ``event_shape``, or ``(n, *event_shape)``.

        >>> from lightning_mip import HSpace, Uniform
        >>> a, b = (HSpace({"lam": Uniform(0, 1)}).sample(seed=0, rank=0, step=7) for _ in range(2))
        >>> a == b
        True
        """
        width = sum(prior.uniforms for prior in self.values())
        points = uniforms(
            strategy, width, 1 if n is None else n, seed=seed, rank=rank, step=step, world_size=world_size
        )
        h: dict[str, Tensor] = {}
        for name, prior in self.items():
            u, points = points[:, : prior.uniforms], points[:, prior.uniforms :]
            values = prior.draw(u if prior.event_shape else u.squeeze(-1))
            h[name] = _default_dtype(values if n is not None else values.squeeze(0))
        return h

    def encode(self, h: Mapping[str, Any], encoding: str = "mip", norm: str = "unit") -> Tensor:
        """Encode ``h`` into one vector; norm 1 for every ``h`` with the default encoding.

        Args:
            h: name -> value; batched values give a batch of vectors.
            encoding: ``mip``, ``z|1-z`` or ``none``.
            norm: ``unit``, or ``paper`` for the published norm sqrt(D) of D components.

        Returns:
            Tensor of shape ``(*batch, features)``, of the dtype of ``h``.
        """
        return encode(self, self.tensors(h), encoding, norm)

    def grid(self, n: int | Mapping[str, int] = 5) -> list[dict[str, Tensor]]:
        """All combinations of ``n`` values of each component.

        Args:
            n: points per component, or component -> points.

        Returns:
            A list of mappings; end points of bounded priors are included.
        """
        counts = dict(n) if isinstance(n, Mapping) else dict.fromkeys(self, n)
        self._check_names(counts)
        axes = [_default_dtype(prior.grid(counts[name])) for name, prior in self.items()]
        size = math.prod(len(axis) for axis in axes)
        if size > MAX_POINTS:
            raise ValueError(
                f"grid({n}) has {size} points, expected at most {MAX_POINTS}; give a number of points per component "
                "such as {'lam': 5, 'phi': 1}, or your own list of h."
            )
        return [dict(zip(self, point, strict=True)) for point in itertools.product(*axes)]

    def center(self) -> dict[str, Tensor]:
        """The middle of every prior: medians, and equal weights of a preference vector."""
        return {name: _default_dtype(prior.center()) for name, prior in self.items()}

    def tensors(self, h: Mapping[str, Any]) -> dict[str, Tensor]:
        """Check ``h`` and turn its values into tensors.

        Args:
            h: name -> number, sequence or tensor of shape ``event_shape`` or ``(B, *event_shape)``.

        Returns:
            name -> tensor, all with the batch dimension if one has it.

        Raises:
            ValueError: a component is missing or unknown, or a value is of the wrong shape or outside its support.
        """
        if not isinstance(h, Mapping):
            raise TypeError(f"h is {shown(h)}, expected a mapping from component to value with {', '.join(self)}.")
        self._check_names(h)
        values = {name: _tensor(name, prior, h[name]) for name, prior in self.items()}
        for name, prior in self.items():
            _check_value(name, prior, values[name])
        batches = {len(v) for name, v in values.items() if v.ndim > len(self[name].event_shape)}
        if len(batches) > 1:
            shapes = {name: tuple(v.shape) for name, v in values.items()}
            raise ValueError(f"h has batches of different sizes: {shapes}, expected one size for all components.")
        for size in batches:
            values = {k: v.expand(size, *self[k].event_shape) for k, v in values.items()}
        return values

    def is_batched(self, h: Mapping[str, Tensor]) -> bool:
        """Whether ``h``, as `tensors` gives it, holds several values of each component."""
        return any(value.ndim > len(self[name].event_shape) for name, value in h.items())

    def given(self, h: Mapping[str, Any] | None, components: Mapping[str, Any]) -> dict[str, Any]:
        """Join an ``h`` given as a mapping and as keyword arguments."""
        if not (h is None or isinstance(h, Mapping)):
            raise TypeError(
                f"h is {shown(h)}, expected a mapping from component to value, or keyword arguments, with "
                f"{', '.join(self)}."
            )
        return {**(h or {}), **components}

    def label(self, h: Mapping[str, Any]) -> str:
        """Name one ``h`` as metric keys do: ``lam=0.25,phi=10``."""
        return ",".join(f"{name}={prior.text(h[name])}" for name, prior in self.items())

    def unknown(self, name: str) -> str:
        """The message for a component that does not exist."""
        close = difflib.get_close_matches(str(name), list(self), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        return f"h has no component {shown(name)}; its components are {', '.join(self)}.{hint}"

    def config(self) -> dict[str, dict[str, Any]]:
        """Describe the space in plain data; ``HSpace(space.config())`` rebuilds it."""
        return {name: prior.config() for name, prior in self.items()}

    def _check_names(self, given: Mapping[str, Any] | Sequence[str]) -> None:
        unknown = [name for name in given if name not in self]
        if unknown:
            raise ValueError(self.unknown(unknown[0]))
        missing = [name for name in self if name not in given]
        if missing:
            raise ValueError(
                f"h lacks {', '.join(missing)}; given were {', '.join(given) or 'none'}, expected {', '.join(self)}."
            )


def _tensor(name: str, prior: Prior, value: Any) -> Tensor:
    try:
        return prior.tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"h[{name!r}] is {shown(value)}, expected a number, numbers or a tensor.") from error


def _check_value(name: str, prior: Prior, value: Tensor) -> None:
    event = prior.event_shape
    if value.ndim not in (len(event), len(event) + 1) or tuple(value.shape[value.ndim - len(event) :]) != event:
        batched = f"(batch, {', '.join(map(str, event))})" if event else "(batch,)"
        raise ValueError(f"h[{name!r}] has shape {tuple(value.shape)}, expected {event} or {batched} for {prior}.")
    with torch.no_grad():
        inside = prior.contains(value)
    if not inside.all():
        outside = value.detach()[~inside].flatten(0, -1 - len(event))[0] if inside.ndim else value.detach()
        numbers = ":".join(number_text(x, FLOAT32_DIGITS) for x in outside.reshape(-1).tolist())
        raise ValueError(f"h[{name!r}] = {numbers} is outside the support of its prior {prior}.")


def _default_dtype(value: Tensor) -> Tensor:
    return value.to(torch.get_default_dtype()) if value.is_floating_point() else value
