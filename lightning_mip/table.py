"""Sweep: a table of metrics over values of ``h``."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from lightning_mip.priors import FLOAT32_DIGITS, number_text
from lightning_mip.shown import shown
from lightning_mip.space import HSpace

Mode = Literal["min", "max"]


class Best(NamedTuple):
    """The point of a sweep with the lowest or highest value of a metric.

    Attributes:
        h: component -> value, as `lightning_mip.materialize` takes it.
        value: the metric there.
    """

    h: dict[str, Tensor]
    value: float


@dataclass(frozen=True, eq=False)
class Sweep:
    """Metrics over values of ``h``; made by `lightning_mip.sweep`.

    Attributes:
        space: the priors of ``h``.
        h: the points, one mapping component -> value each.
        metrics: name -> values, one per point, shape ``(points,)``.

    >>> from lightning_mip import HSpace, Uniform
    >>> space = HSpace({"lam": Uniform(0, 1)})
    >>> table = Sweep(space, space.grid(3), {"val_loss": torch.tensor([3.0, 1.0, 2.0])})
    >>> table
    Sweep(3 points of lam; val_loss)
    >>> table.best("val_loss", mode="min")
    Best(h={'lam': tensor(0.5000)}, value=1.0)
    """

    space: HSpace
    h: Sequence[Mapping[str, Tensor]]
    metrics: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.h)

    def __getitem__(self, metric: str) -> Tensor:
        if metric not in self.metrics:
            raise KeyError(f"The sweep has no metric {metric!r}; its metrics are {', '.join(self.metrics)}.")
        return self.metrics[metric]

    def __repr__(self) -> str:
        names = ", ".join(self.varying) or ", ".join(self.space)
        return f"Sweep({len(self)} point{'s' * (len(self) != 1)} of {names}; {', '.join(self.metrics)})"

    def __str__(self) -> str:
        columns = {name: [name, *(f"{x:.5g}" for x in numbers)] for name, numbers in self.columns().items()}
        for name, prior in self.space.items():
            if not prior.event_shape:
                columns[name] = [name, *(prior.text(h[name]) for h in self.h)]
        widths = [max(map(len, column)) for column in columns.values()]
        rows = zip(*columns.values(), strict=True)
        return "\n".join("  ".join(map(str.rjust, row, widths)) for row in rows)

    @property
    def varying(self) -> list[str]:
        """The components of ``h`` that have more than one value."""
        return [name for name in self.space if len(self.values(name).unique(dim=0)) > 1]

    @property
    def labels(self) -> list[str]:
        """The points as names of metrics have them: ``lam=0.25,phi=10``."""
        return [self.space.label(h) for h in self.h]

    def values(self, name: str) -> Tensor:
        """The values of one component, one per point, shape ``(points, *event_shape)``."""
        if name not in self.space:
            raise KeyError(self.space.unknown(name))
        return torch.stack([h[name] for h in self.h])

    def select(self, h: Mapping[str, Any] | None = None, /, **components: Any) -> Sweep:
        """The points at which some components have given values; what the components are called is free.

        Raises:
            ValueError: no point has these values; the message lists those that there are.
        """
        chosen = torch.ones(len(self), dtype=torch.bool)
        for name, value in self.space.given(h, components).items():
            mine = self.values(name)
            wanted = self.space[name].tensor(value).to(mine)
            chosen &= torch.isclose(mine, wanted, rtol=1e-5).reshape(len(self), -1).all(-1)
            if not chosen.any():
                found = ", ".join(dict.fromkeys(HSpace({name: self.space[name]}).label({name: v}) for v in mine))
                raise ValueError(f"No point of the sweep has {name}={value!r}; its values are {found}.")
        points = [point for point, keep in zip(self.h, chosen.tolist(), strict=True) if keep]
        return Sweep(self.space, points, {name: values[chosen] for name, values in self.metrics.items()})

    def best(self, metric: str, mode: Mode) -> Best:
        """The point with the lowest (``min``) or highest (``max``) value of a metric.

        `lightning_mip.choose` also refines it, and says how sure it is.

        Raises:
            KeyError: there is no such metric; the message lists those that there are.
            ValueError: ``mode`` is neither, or the metric is NaN at all points.
        """
        values = check_mode(mode) * self[metric].double()
        if values.isnan().all():
            raise ValueError(f"{metric} is NaN at all {len(self)} points of the sweep, so none of them is best.")
        index = int(values.nan_to_num(float("inf"), float("inf"), float("-inf")).argmin())
        return Best(dict(self.h[index]), float(self[metric][index]))

    def columns(self) -> dict[str, list[float]]:
        """The table by columns: components (``weights[0]``, ``weights[1]`` of a preference vector), then metrics."""
        columns: dict[str, list[float]] = {}
        for name in self.space:
            values = self.values(name)
            parts = {name: values} if values.ndim == 1 else {f"{name}[{k}]": v for k, v in enumerate(values.T)}
            columns |= {part: _digits(numbers) for part, numbers in parts.items()}
        for name, values in self.metrics.items():
            columns[name if name not in columns else f"metric {name}"] = _digits(values)
        return columns

    def to_csv(self, path: str | Path) -> None:
        """Write the table as a CSV file: a line of names, then one line per point."""
        columns = self.columns()
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))

    def to_pandas(self) -> Any:
        """The table as a ``pandas.DataFrame``; needs pandas."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_pandas needs pandas; pip install pandas, or use to_csv(path).") from error
        return pandas.DataFrame(self.columns())

    def plot(
        self,
        metrics: str | Sequence[str] | None = None,
        *,
        mode: Mode | Mapping[str, Mode] | None = None,
        ax: Any = None,
    ) -> tuple[Any, Any]:
        """Draw the metrics over ``h``; needs matplotlib.

        One number: curves, with the density of the training prior under the axis. Two numbers: heat maps. A preference
        vector of two: two metrics against each other (the Pareto front), of three: triangles.

        Args:
            metrics: which; None for all.
            mode: ``min`` or ``max``, or metric -> mode: marks the best point, or the points of the front.
            ax: where to draw one metric, or one front; None for a new figure.

        Returns:
            The figure, and its axes, or a list of axes if it has several.
        """
        from lightning_mip.plotting import plot_sweep

        return plot_sweep(self, metrics, mode=mode, ax=ax)


def check_mode(mode: str) -> int:
    """1 for ``min``, -1 for ``max``; ValueError for anything else."""
    if mode not in ("min", "max"):
        raise ValueError(f"mode is {shown(mode)}, expected 'min' or 'max'.")
    return 1 if mode == "min" else -1


def _digits(values: Tensor) -> list[float]:
    """Numbers with as many digits as single precision has: 0.1, not 0.10000000149011612."""
    if values.dtype == torch.float64 or not values.is_floating_point():
        return values.tolist()
    return [float(number_text(value, FLOAT32_DIGITS)) for value in values.tolist()]
