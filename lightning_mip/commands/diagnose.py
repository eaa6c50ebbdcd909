"""``lightning-mip diagnose``: does the hypernetwork of a trained module do anything?"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lightning_mip.commands.errors import Options, fail, one_line
from lightning_mip.commands.trained import PARTS, add_run, batches, check_run, trained
from lightning_mip.diagnosis.diagnose import diagnose
from lightning_mip.diagnosis.report import Diagnosis

_DESCRIPTION = """\
Say whether the hypernetwork of a trained module does anything, and whether it trains as the plain network would:

  matter       the loss with the weights of the right h, of another h, of one h for all, and of theta0 alone
  magnitude    whether the generated weights are as large at small h as at large h
  gradients    how much the loss gradient varies over h, and over the data
  step         the learning rate that the generated weights feel, as a multiple of the optimizer's
  trunk        units of the hypernetwork that are dead
  scale        generated tensors that are far too large or too small

It prints a report, and writes diagnosis.txt, diagnosis.json and diagnosis.png.
"""
_EXAMPLES = """\
examples:
  lightning-mip diagnose --config run.yaml --ckpt_path last.ckpt
  lightning-mip diagnose --config run.yaml --ckpt_path last.ckpt --draws 16 --batches 32 --out results

All other arguments are those of `lightning-mip validate`, such as --trainer.accelerator=gpu; they change the config.
"""


def main(args: Sequence[str]) -> Diagnosis:
    """Run the command.

    Args:
        args: the command line after ``diagnose``.

    Returns:
        The report that was written.
    """
    options, rest = _parser().parse_known_args(args)
    check_run(options, "diagnose")
    module, data = trained(options, rest, "diagnose")
    loader = batches(module, data, options.part)
    if loader is None:
        what = f"{options.part}_dataloader" if options.part else "val_dataloader or train_dataloader"
        fail(
            "diagnose",
            f"{type(data or module).__name__} has no {what}, so there are no batches to look at; define it, or name a "
            "data module that has it, --data=package.module.Class.",
        )
    with one_line("diagnose"):
        report = diagnose(
            module,
            loader,
            metric=options.metric,
            mode=options.mode,
            draws=options.draws,
            batches=options.batches,
        )
    print(report)
    files = report.save(options.out)
    print(f"\nwrote {', '.join(map(str, files))}")
    if len(files) < 3:
        print("left out diagnosis.png: it needs matplotlib; pip install 'lightning-mip[plot]'")
    return report


def _parser() -> argparse.ArgumentParser:
    parser = Options("diagnose", description=_DESCRIPTION, epilog=_EXAMPLES)
    add_run(parser, config="the config of the training run")
    parser.add_argument(
        "--part", choices=PARTS, help="the data to look at (default: val, or train where there is no validation)"
    )
    parser.add_argument("--draws", type=int, default=8, help="values of h to compare (default: %(default)s)")
    parser.add_argument("--batches", type=int, default=8, help="batches to look at (default: %(default)s)")
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="a number that validation_step logs, and that depends on h as the loss does, to compare instead of the "
        "loss",
    )
    parser.add_argument(
        "--mode", choices=("min", "max"), default="min", help="which metric is better (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path(), metavar="FOLDER", help="where to write (default: the working directory)"
    )
    return parser
