"""``lightning-mip sweep``: a table, a figure and a page of the metrics over ``h``."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_mip.commands.configured import configured
from lightning_mip.commands.errors import Options, fail, one_line
from lightning_mip.commands.trained import add_run, check_config, check_run
from lightning_mip.dial import parse_grid
from lightning_mip.space import HSpace
from lightning_mip.sweep import grid_owner, sweep
from lightning_mip.table import Mode, Sweep

_DESCRIPTION = """\
Evaluate a trained module at every value of h on a grid, and write what its validation_step logs:

  sweep.csv    one line per value of h, one column per metric
  sweep.png    the metrics over h, with the density of the training prior
  sweep.html   the same, with a slider over h, and the module's pictures if it has visualize(h); works offline
"""
_EXAMPLES = """\
the grid, for h = {lam: Uniform(0, 1), phi: LogUniform(0.001, 10), w: Simplex(3)}:
  --grid lam=0:1:21            21 values from 0 to 1
  --grid phi=log:1e-3:10:9     9 values from 0.001 to 10, with equal factors between them
  --grid lam=21                21 values over the prior of lam; for w, 21 along each edge of the triangle
  --grid lam=at:0,0.2,0.5      these values; of w: w=at:1:0:0,0.2:0.3:0.5
  --grid lam=0:1:21 --grid phi=log:1e-3:10:9      all pairs
Components that are not named stay at the center of their priors.

examples:
  lightning-mip sweep --config run.yaml --ckpt_path last.ckpt --grid lam=0:1:21
  lightning-mip sweep --config run.yaml --ckpt_path last.ckpt --best val_dice=max --out results

All other arguments are those of `lightning-mip validate`, such as --trainer.accelerator=gpu; they change the config.
"""
# Points per component without --grid, by the number of components.
_POINTS = {1: 21, 2: 9}
_MANY_POINTS = 5


def main(args: Sequence[str]) -> Sweep:
    """Run the command.

    Args:
        args: the command line after ``sweep``.

    Returns:
        The table that was written.
    """
    options, rest = _parser().parse_known_args(args)
    check_run(options, "sweep")
    check_config(options, rest, "sweep")
    model, trainer, data = configured([f"--config={path}" for path in options.config] + rest, "sweep")
    try:
        space = grid_owner(model, trainer).space
        grid = _grid(options.grid, space)
        best = _modes(options.best)
    except ValueError as error:
        fail("sweep", str(error))
    trainer.datamodule = data
    with one_line("sweep"):
        table = sweep(model, trainer, grid, stage=options.stage, ckpt_path=options.ckpt_path)
    if trainer.is_global_zero:
        options.out.mkdir(parents=True, exist_ok=True)
        _write(table, model, {name: mode for name, mode in best.items() if name in table.metrics}, options.out)
    unknown = [name for name in best if name not in table.metrics]
    if unknown:
        fail("sweep", f"--best {unknown[0]}: no such metric was logged; there are {', '.join(table.metrics)}.")
    return table


def _parser() -> argparse.ArgumentParser:
    parser = Options("sweep", description=_DESCRIPTION, epilog=_EXAMPLES)
    add_run(parser, config="the config of the training run")
    parser.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="NAME=LOW:HIGH:POINTS",
        help="values of one component of h, see below; once per component (default: 21 points over the prior, 9 each "
        "of two components, 5 each of more)",
    )
    parser.add_argument(
        "--best",
        action="append",
        default=[],
        metavar="METRIC=min|max",
        help="mark and print the best h for a metric; may be given several times",
    )
    parser.add_argument(
        "--stage",
        choices=("validate", "test"),
        default="validate",
        help="which step and data of the module (default: %(default)s)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path(), metavar="FOLDER", help="where to write (default: the working directory)"
    )
    return parser


def _grid(given: Sequence[str], space: HSpace) -> int | dict[str, Tensor]:
    return parse_grid(given, space) if given else _POINTS.get(len(space), _MANY_POINTS)


def _modes(given: Sequence[str]) -> dict[str, Mode]:
    modes: dict[str, Mode] = {}
    for text in given:
        name, _, mode = text.rpartition("=")
        if not name or mode not in ("min", "max"):
            raise ValueError(f"--best {text}: expected METRIC=min or METRIC=max, such as val_loss=min.")
        modes[name] = mode  # type: ignore[assignment]
    return modes


def _write(table: Sweep, model: Any, best: Mapping[str, Mode], folder: Path) -> None:
    for metric, mode in best.items():
        found = table.best(metric, mode)
        print(f"best {metric} = {found.value:.6g} at {table.space.label(found.h)}")
    table.to_csv(folder / "sweep.csv")
    print(f"wrote {folder / 'sweep.csv'}: {len(table)} values of h, {len(table.metrics)} metrics")
    for name, write, package, extra in (
        ("sweep.png", _figure, "matplotlib", "plot"),
        ("sweep.html", _page, "plotly", "page"),
    ):
        if importlib.util.find_spec(package) is None:
            print(f"left out {name}: it needs {package}; pip install 'lightning-mip[{extra}]'")
            continue
        problem = write(table, model, best, folder / name)
        print(f"left out {name}: {problem}" if problem else f"wrote {folder / name}")


def _figure(table: Sweep, model: Any, best: Mapping[str, Mode], path: Path) -> str | None:
    import matplotlib

    from lightning_mip.plotting import drawable

    if not drawable(table):
        return f"what varies is {', '.join(table.varying) or 'nothing'}, and a figure shows one or two numbers at most"
    # A command has no window to show figures in.
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, _ = table.plot(mode=best)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return None


def _page(table: Sweep, model: Any, best: Mapping[str, Mode], path: Path) -> str | None:
    from lightning_mip.page import write_page
    from lightning_mip.pictures import pictures

    write_page(
        table,
        path,
        title=f"{type(model).__name__} over {', '.join(table.varying) or 'h'}",
        pictures=pictures(model, table.h),
    )
    return None
