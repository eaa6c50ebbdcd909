"""``lightning-mip export``: the plain network of one h, as a file."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from lightning_mip.checkpoints import read_checkpoint, saved_hypernetwork
from lightning_mip.commands.errors import Options, fail, one_line
from lightning_mip.commands.trained import add_run, batches, check_run, trained
from lightning_mip.dial import parse_h
from lightning_mip.exporting import Exported, Format, export
from lightning_mip.injection import the_injector
from lightning_mip.space import HSpace

_DESCRIPTION = """\
Take the plain network of one h out of a checkpoint, write it to a file, and check the file: it must put out what the
hypernetwork does, to 1e-5. The difference that was found is printed.

formats (--format, or by the suffix of --out):
  state_dict    .pt     the weights: network.load_state_dict(torch.load("net.pt"))
  checkpoint    .ckpt   of a plain LightningModule with the network under the same name: Module.load_from_checkpoint
  torch_export  .pt2    a program without its Python code: torch.export.load("net.pt2").module()
  onnx          .onnx   a program for onnxruntime and others; needs pip install 'lightning-mip[onnx]'
"""
_EXAMPLES = """\
h is given as NAME=VALUE, several components each with its own --h or with commas between:
  --h lam=0.3       --h lam=0.3 --h phi=1e-2       --h lam=0.3,phi=1e-2
the numbers of a preference vector have colons between them:
  --h weights=0.2:0.8

examples:
  lightning-mip export --ckpt_path last.ckpt --h lam=0.3 --out net.pt
  lightning-mip export --ckpt_path last.ckpt --config run.yaml --h lam=0.3 --out net.onnx
  lightning-mip export --ckpt_path last.ckpt --config run.yaml --h lam=0.3 --out net.pt --recalibrate

Programs are traced on the first batch of the config's data, or on the module's example_input_array. With --config, all
other arguments are those of `lightning-mip validate`, such as --data.batch_size=4; they change the config.
"""
# Batches that running statistics are estimated on.
_RECALIBRATE = 100


def main(args: Sequence[str]) -> Exported:
    """Run the command.

    Args:
        args: the command line after ``export``.

    Returns:
        What was written, with the difference.
    """
    parser = _parser()
    options, rest = parser.parse_known_args(args)
    check_run(options, "export")
    if options.out is None:
        fail("export", "--out is missing: give the file to write, --out=net.pt, .ckpt, .pt2 or .onnx.")
    if rest and not options.config:
        fail("export", f"unknown argument {rest[0]}; arguments of the module and its data need the run's --config.")
    source, space, data = _source(options, rest)
    with one_line("export"):
        exported = export(
            source,
            parse_h(options.h, space),
            options.out,
            format=options.format,
            example=_example(source, data),
            recalibrate=_recalibration(options.recalibrate, source, data),
        )
    print(exported)
    return exported


def _parser() -> argparse.ArgumentParser:
    parser = Options("export", description=_DESCRIPTION, epilog=_EXAMPLES)
    add_run(parser, config="the config of the training run; without it, weights can be exported, but no program")
    parser.add_argument("--h", action="append", default=[], metavar="NAME=VALUE", help="the value, see below")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the file to write")
    parser.add_argument("--format", choices=get_args(Format), help="what to write (default: by the suffix of --out)")
    parser.add_argument(
        "--recalibrate",
        type=int,
        nargs="?",
        const=_RECALIBRATE,
        metavar="BATCHES",
        help="estimate the running statistics of BatchNorm anew at this h, on so many training batches "
        "(default: %(const)s)",
    )
    return parser


def _source(options: argparse.Namespace, rest: Sequence[str]) -> tuple[Any, HSpace, Any]:
    """The module, or the checkpoint alone; its space; and the data module."""
    if options.config:
        module, data = trained(options, rest, "export")
        with one_line("export"):
            return module, the_injector(module).hypernet.space, data
    with one_line("export"):
        return options.ckpt_path, saved_hypernetwork(read_checkpoint(options.ckpt_path))[0].space, None


def _example(source: Any, data: Any) -> Any:
    loader = None if isinstance(source, str) else batches(source, data)
    return None if loader is None else next(iter(loader), None)


def _recalibration(count: int | None, source: Any, data: Any) -> Any:
    if count is None:
        return None
    loader = None if isinstance(source, str) else batches(source, data, "train")
    if loader is None:
        raise ValueError("--recalibrate needs training batches: give the run's --config, with a data module.")
    return itertools.islice(loader, count)
