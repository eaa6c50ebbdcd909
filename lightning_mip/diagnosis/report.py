"""The report of a diagnosis: verdicts, text, JSON and a figure."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_mip.diagnosis import verdicts
from lightning_mip.diagnosis.gradients import Gradients
from lightning_mip.diagnosis.inside import Units
from lightning_mip.diagnosis.matter import Matter
from lightning_mip.diagnosis.step_size import StepSize
from lightning_mip.diagnosis.text import tables
from lightning_mip.magnitude import Magnitudes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found; ``print`` it, or `save` it.

    Attributes:
        module: class of the module.
        h: component -> its prior.
        draws: how many values of ``h`` were looked at.
        batches: how many batches.
        now: norms of the generated tensors.
        at_init: the same of a fresh hypernetwork of the same making; None where that is not known.
        matter: scores with the right ``h``, another, and none.
        gradients: norms and scatter of the loss gradient.
        step: how far an optimizer step goes.
        trunk: dead units.
        off_scale: generated tensor -> in which way its scale is off.
        left_out: part -> why it is None.
    """

    module: str
    h: dict[str, str]
    draws: int
    batches: int
    now: Magnitudes
    at_init: Magnitudes | None
    matter: Matter
    gradients: Gradients | None
    step: StepSize | None
    trunk: list[Units]
    off_scale: dict[str, str]
    left_out: dict[str, str]

    @property
    def kind(self) -> str:
        """Whether the hypernetwork does anything, in a word.

        ``matters``, ``weak``, ``ignored``, ``unread`` (the loss does not depend on ``h``), ``constant``, ``dead``,
        ``wrong`` or ``unknown``.
        """
        return verdicts.kind(self)

    @property
    def verdicts(self) -> dict[str, str]:
        """Part -> one line in plain words."""
        lines = {
            "matter": verdicts.of_matter(self),
            "magnitude": verdicts.of_magnitude(self),
            "gradients": verdicts.of_gradients(self),
            "step": verdicts.of_step(self),
            "trunk": verdicts.of_trunk(self),
            "scale": verdicts.of_scale(self),
        }
        missing = {name: f"left out: {reason}" for name, reason in self.left_out.items() if name in lines}
        return {name: line or missing.get(name, "left out.") for name, line in lines.items()}

    def __str__(self) -> str:
        return "\n".join(tables(self))

    def to_dict(self) -> dict[str, Any]:
        """Everything in plain data, with the verdicts."""
        numbers = {field.name: _plain(getattr(self, field.name)) for field in fields(self)}
        return {"kind": self.kind, "verdicts": self.verdicts, **numbers}

    def to_json(self) -> str:
        """Everything as JSON; what is not finite is null."""
        return json.dumps(self.to_dict(), indent=1)

    def plot(self) -> Figure:
        """Draw the figure; needs matplotlib (``pip install 'lightning-mip[plot]'``)."""
        from lightning_mip.diagnosis.figure import draw

        figure: Figure = draw(self)
        return figure

    def save(self, folder: str | Path) -> list[Path]:
        """Write ``diagnosis.txt``, ``diagnosis.json`` and, with matplotlib, ``diagnosis.png``; returns the files."""
        where = Path(folder)
        where.mkdir(parents=True, exist_ok=True)
        files = [where / "diagnosis.txt", where / "diagnosis.json"]
        files[0].write_text(f"{self}\n")
        files[1].write_text(f"{self.to_json()}\n")
        try:
            figure = self.plot()
        except ImportError:
            return files
        files.append(where / "diagnosis.png")
        figure.savefig(files[-1], dpi=110)
        return files


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if is_dataclass(value):
        own = {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
        return own | ({"exponent": value.exponent} if isinstance(value, Magnitudes) else {})
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
