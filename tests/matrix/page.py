"""Writes docs/support.md from the table: ``python -m tests.matrix.page``."""

from __future__ import annotations

from pathlib import Path

from tests.matrix.table import COLUMNS, ROWS, Refused, cell, counts, status

PAGE = Path(__file__).parents[2] / "docs" / "support.md"

_ABOUT = """# What works with what

Made by `python -m tests.matrix.page` from the table that the tests in `tests/matrix` run; do not edit.

Rows are kinds of networks, columns what one does with a hypernetized one. **ok**: outputs and gradients, or the weights
after training, are those of the same computation by hand (`torch.func.functional_call` with `theta0 + delta(h)`), in
float64 with a relative error of at most 1e-8, in bfloat16 of at most 0.25 per tensor (which in the rows of activation
checkpointing inside would not tell one h from another). **no**: refused by an error.
**-**: not applicable, as the plain network is no better off, which a test shows. Numbers are notes below the table.

Quantization-aware layers and those of a dtype of their own are trained in that dtype, and the reference of the former
is in float32, as rounding is what they do. `compile` is by the `aot_eager` backend, and by inductor for a few rows.
That the second `h` does not compile anything again is checked where torch makes one graph of the network; of these
rows it makes several, with Python between them, and nothing is checked: {in_parts}.

Lightning's searches for a learning rate or a batch size (`Tuner`, `LearningRateFinder`, `BatchSizeFinder`) run without
the callbacks of the Trainer. A `HyperLightningModule` draws `h` in them all the same. With the plug-in, the network
runs at one `h`, the center of the priors, beside the module's own hyperparameters. So what is found is the rate of the
plain network, which is the one to use, as rates are matched ([why](update_matching.md)).
"""


def page() -> str:
    """The whole page."""
    signs = {"right": "ok", "refused": "no", "not applicable": "-"}
    notes: list[str] = []
    lines = [f"| network | {' | '.join(COLUMNS)} |", f"| --- {'| --- ' * len(COLUMNS)}|"]
    for row, kind in ROWS.items():
        cells = []
        for column in COLUMNS:
            declared, sign = cell(row, column), signs[status(row, column)]
            if declared is not None:
                note = (
                    f"`{declared.error.__name__}`: {declared.text}"
                    if isinstance(declared, Refused)
                    else declared.reason
                )
                if note not in notes:
                    notes.append(note)
                sign = f"{sign} {notes.index(note) + 1}"
            cells.append(sign)
        lines.append(f"| {kind.says} | {' | '.join(cells)} |")
    total = ", ".join(f"{count} {name}" for name, count in counts().items())
    numbered = [f"{number}. {note}" for number, note in enumerate(notes, start=1)]
    in_parts = "; ".join(kind.says for kind in ROWS.values() if not kind.whole)
    return "\n".join(
        [_ABOUT.format(in_parts=in_parts), f"{len(ROWS) * len(COLUMNS)} cells: {total}.", "", *lines, "", *numbered, ""]
    )


if __name__ == "__main__":
    PAGE.write_text(page())
