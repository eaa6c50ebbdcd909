"""diagnose: does the hypernetwork of a module do anything, and is its training healthy?"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from lightning_mip.batches import check_batches
from lightning_mip.diagnosis.gradients import gradients
from lightning_mip.diagnosis.inside import fresh, off_scale, trunk_units
from lightning_mip.diagnosis.matter import cases, matter
from lightning_mip.diagnosis.report import Diagnosis
from lightning_mip.diagnosis.step_size import MakeOptimizer, step_size
from lightning_mip.diagnosis.subject import Loss, Subject
from lightning_mip.injection import the_injector
from lightning_mip.magnitude import magnitudes, points
from lightning_mip.positive import check_whole
from lightning_mip.table import check_mode

# Values of h at which norms are looked at; a multiple of the strata of low-discrepancy draws, and an end more.
_POINTS = 17
_UNKNOWN = "the hypernetwork was given as a module, or is a copy, so how it was made is not known."

_Part = TypeVar("_Part")


def diagnose(
    module: nn.Module,
    dataloader: Iterable[Any],
    *,
    loss: Loss | None = None,
    metric: str | None = None,
    mode: Literal["min", "max"] = "min",
    optimizer: MakeOptimizer | None = None,
    draws: int = 8,
    batches: int = 8,
    seed: int = 0,
) -> Diagnosis:
    """Say whether the hypernetwork does anything, and whether it trains as the plain network would.

    Runs ``draws ** 2 * batches`` steps, on a copy of the module in evaluation mode; nothing is logged or changed.

    Args:
        module: a HyperLightningModule; a LightningModule that was trained with the plug-in ``Hypernetize``; or any
            module that holds one hypernetized network, with ``loss``.
        dataloader: batches as the module's ``training_step`` takes them; the first ``batches`` are used.
        loss: ``loss(module, batch, h)``, for modules without a ``training_step`` of one ``h``; called with the weights
            in place.
        metric: a number that ``validation_step`` logs, to score instead of the loss. It should depend on ``h`` itself,
            as the loss does, or no ``h`` is the right one.
        mode: whether a smaller or a larger metric is better.
        optimizer: makes the optimizer from parameters, for modules without ``configure_optimizers``.
        draws: values of ``h`` to compare.
        batches: batches to use.
        seed: of the draws, and of random numbers in the steps.

    Returns:
        A `Diagnosis`: ``print(report)``, ``report.kind``, ``report.verdicts``, ``report.to_json()``,
        ``report.plot()``, ``report.save(folder)``.

    Raises:
        ValueError: the module is not hypernetized, has no loss, or the dataloader is empty.

    >>> import lightning_mip as mip
    >>> net = nn.Linear(2, 1)
    >>> hyper = mip.hypernetize(net, {"lam": mip.Uniform(0, 1)}, encoding="none")
    >>> def loss(net, x, h):
    ...     return ((net(x) - h["lam"]) ** 2).mean()
    >>> report = mip.diagnose(net, [torch.ones(4, 2)], loss=loss, optimizer=torch.optim.Adam)
    >>> report.verdicts["magnitude"].split(":")[0]
    'proportional'
    """
    for name, given in (("draws", draws), ("batches", batches)):
        check_whole(name, given)
        if given < 1:
            raise ValueError(f"{name} is {given}, expected at least 1.")
    check_whole("seed", seed)
    seed %= 2**63  # what torch takes
    check_mode(mode)
    check_batches(dataloader)
    original = the_injector(module)
    subject = Subject(module, loss, metric)
    kept = [subject.moved(batch) for batch in itertools.islice(dataloader, batches)]
    if not kept:
        raise ValueError("dataloader has no batches, expected at least one.")
    left_out: dict[str, str] = {}
    with isolate_rng(), warnings.catch_warnings():
        # Of tensors that no gradient came back to: training says so.
        warnings.filterwarnings("ignore", message="No gradient came back")
        torch.manual_seed(seed)
        all_cases = cases(subject, kept, draws, seed)
        hs = points(subject.space, _POINTS)
        now = magnitudes(subject.injector, hs)
        new = fresh(original)
        if new is None:
            left_out["at_init"] = _UNKNOWN
        if not subject.has_loss:
            left_out |= dict.fromkeys(("gradients", "step"), "the module takes its optimizer steps itself.")
        first = all_cases[0]
        return Diagnosis(
            module=type(module).__name__,
            h={name: str(prior) for name, prior in subject.space.items()},
            draws=len(all_cases),
            batches=len(kept),
            now=now,
            at_init=None if new is None else magnitudes(new, hs),
            matter=matter(subject, all_cases, mode, seed),
            gradients=gradients(subject, all_cases, seed) if subject.has_loss else None,
            step=_tried("step", left_out, lambda: step_size(subject, first.h, first.batches[0], optimizer, seed)),
            trunk=trunk_units(subject.injector.hypernet, hs),
            off_scale=off_scale(subject.injector, now),
            left_out=left_out,
        )


def _tried(name: str, left_out: dict[str, str], compute: Callable[[], _Part]) -> _Part | None:
    """Compute a part that runs an author's ``configure_optimizers`` outside of a run, where it may fail."""
    if name in left_out:
        return None
    try:
        return compute()
    except Exception as error:
        left_out[name] = f"{type(error).__name__}: {error}"
        return None
