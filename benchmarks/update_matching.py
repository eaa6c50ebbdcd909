"""Does a hypernetized network train at the learning rate of the plain one? Sensitivity to it, and what moves it.

    python -m benchmarks.update_matching lr --optimizer adam --out docs/benchmarks/matching_lr_adam.md
    python -m benchmarks.update_matching edge|depth|trunk|init|share|shifted|heads|final --out ...

Digits at 14 x 14 (4000 for training), deep networks all of whose weights are generated. In all studies but ``shifted``
and ``heads`` the labels do not depend on h, so that the plain network is the measure; in those two, h shifts them.

* ``lr``: 12 convolutions without norm layers; six learning rates; plain, ours, published MIP, HyperLight.
* ``edge``: the highest of those rates, with more seeds (``--seeds 8``).
* ``depth``: 4 to 19 convolutions, and 12 with ways around them, BatchNorm or GroupNorm.
* ``trunk``: last widths 8 to 256, depths of the trunk, dimensions of h.
* ``init``: how large ``delta`` is at the start. ``share``: how far the hypernetwork moves theta.
* ``shifted``: three convolutions, labels shifted by h, the rate decaying to zero; learning rates, a wider trunk.
* ``heads``: the same with each kind of head, at two lengths of training: how fast does each learn what h does?
* ``final``: 12 plain convolutions and VGG-16's layers until they learn no more: accuracy, and steps to reach it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import lightning_mip as mip
from benchmarks import tables
from benchmarks.arguments import parsed, with_data
from benchmarks.matching_tasks import NETWORKS, Digits, load, midpoints, shifted
from benchmarks.training import stepper
from benchmarks.variants import VARIANTS, installed
from lightning_mip import matching

PAPER = {"hidden_sizes": (16, 64, 128), "encoding_norm": "paper", "scale": "paper", "init": "fan_out"}
# Name in the tables -> (variant, its options).
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("plain", {}),
    "ours": ("ours", {}),
    "MIP as published": ("ours", PAPER),
    "HyperLight": ("hyperlight", {}),
}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": partial(torch.optim.Adam, fused=True),
    "adamw": partial(torch.optim.AdamW, fused=True),
    "sgd": partial(torch.optim.SGD, momentum=0.9),
}
RATES = {"adam": (1e-4, 3e-4, 1e-3, 3e-3, 6e-3, 1e-2), "sgd": (1e-3, 3e-3, 1e-2, 3e-2, 6e-2, 1e-1)}
BATCH = 64
TRUNKS = ((16, 32),)
SMALL_SHARE = 0.1
HEADS = ("full", mip.LowRank(4), mip.LowRank(8), mip.Chunked(1024))
# Twice the share of the commonest digit: at most that is what a network gets that has learned nothing.
COLLAPSED = 0.2


@dataclass(frozen=True)
class Setting:
    """One training, but for its seed; ``boost`` multiplies the learning rate of the hypernetwork's own parameters."""

    way: str
    network: str = "cnn12"
    optimizer: str = "adam"
    lr: float = 1e-3
    epochs: int = 3
    shift: bool = False
    dimensions: int = 1
    decay: bool = False
    boost: float = 1
    options: dict[str, Any] = field(default_factory=dict)


def curve(setting: Setting, digits: Digits, seed: int, every: int | None = None) -> list[float]:
    """Train once; accuracy, mean over h, after each epoch or every so many steps, 0 from where a loss is infinite."""
    torch.manual_seed(seed)
    space = mip.HSpace({f"h{i}": mip.Uniform(0, 1) for i in range(setting.dimensions)})
    name, options = WAYS[setting.way]
    net = NETWORKS[setting.network]()
    theta0 = list(net.parameters())
    variant = VARIANTS[name](net, space, seed, **{**options, **setting.options})
    groups: list[Any] = [{"params": theta0}] if setting.boost != 1 else variant.parameters
    if setting.boost != 1:
        known = set(map(id, theta0))
        own = [parameter for parameter in variant.parameters if id(parameter) not in known]
        groups.append({"params": own, "lr": setting.boost * setting.lr})
    optimizer = OPTIMIZERS[setting.optimizer](groups, lr=setting.lr)

    def loss(net: Any, batch: Any, h: Any) -> torch.Tensor:
        x, y = batch
        return F.cross_entropy(net(x), shifted(y, [h[name] for name in space]) if setting.shift else y)

    grid = midpoints(space)

    @torch.no_grad()
    def accuracy() -> float:
        right = []
        for h in grid if name != "plain" else grid[:1]:
            with variant.at(h) as net:
                wanted = shifted(digits.y_test, list(h.values())) if setting.shift else digits.y_test
                right.append((net(digits.x_test).argmax(-1) == wanted).float().mean())
        return float(torch.stack(right).mean())

    step, found = stepper(variant, optimizer, loss), list[float]()
    generator = torch.Generator().manual_seed(seed)
    per_epoch = len(digits.x) // BATCH
    total = setting.epochs * per_epoch
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total) if setting.decay else None
    for done in range(0, total, per_epoch):
        order = torch.randperm(len(digits.x), generator=generator)
        for k in range(per_epoch):
            index = order[k * BATCH : (k + 1) * BATCH]
            try:
                step((digits.x[index], digits.y[index]))
            except FloatingPointError:  # this package's own word for weights that are not finite
                return found + [0.0] * (total // (every or per_epoch) - len(found))
            if decay is not None:
                decay.step()
            if (done + k + 1) % (every or per_epoch) == 0:
                found.append(accuracy())
    return found


def finals(setting: Setting, digits: Digits, seeds: int) -> list[float]:
    """Accuracy at the end, for each seed."""
    found = [curve(setting, digits, seed)[-1] for seed in range(seeds)]
    print(setting, [round(value, 3) for value in found], flush=True)
    return found


def cell(values: Sequence[float]) -> str:
    """Mean, and the lowest and highest of the seeds."""
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def grid_table(
    rows: Mapping[str, Callable[[Any], Setting]], columns: Mapping[str, Any], digits: Digits, seeds: int, corner: str
) -> str:
    """A table of accuracies: ``rows[name](column)`` is the setting of a cell."""
    lines = [
        [name, *(cell(finals(make(value), digits, seeds)) for value in columns.values())] for name, make in rows.items()
    ]
    return tables.table([corner, *columns], lines)


@contextmanager
def _sharing(share: float) -> Iterator[None]:
    """Make hypernetworks with another share."""
    own, matching.SHARE = matching.SHARE, share
    try:
        yield
    finally:
        matching.SHARE = own


def lr_study(digits: Digits, seeds: int, optimizer: str, ways: Sequence[str]) -> list[str]:
    rows = {way: partial(_at_rate, Setting(way, optimizer=optimizer)) for way in ways}
    rates = RATES["sgd" if optimizer == "sgd" else "adam"]
    return [f"12 convolutions, {optimizer}", grid_table(rows, _rates(rates), digits, seeds, "learning rate")]


def edge_study(digits: Digits, seeds: int, optimizer: str, ways: Sequence[str]) -> list[str]:
    """The end of the plain network's range, with all seeds: how often does training collapse?"""
    rates, own = RATES["sgd" if optimizer == "sgd" else "adam"][-2:], matching.SHARE
    rows = {"plain": ("plain", own), "ours": ("ours", own), f"ours, share {SMALL_SHARE}": ("ours", SMALL_SHARE)}
    lines = []
    for (name, (way, share)), lr in product(rows.items(), rates):
        with _sharing(share):
            found = finals(Setting(way, optimizer=optimizer, lr=lr), digits, seeds)
        collapsed = sum(value < COLLAPSED for value in found)
        values = ", ".join(f"{value:.3f}" for value in sorted(found))
        lines.append([name, f"{lr:g}", f"{collapsed} of {seeds}", f"{statistics.median(found):.3f}", values])
    header = ["trained by", "learning rate", f"below {COLLAPSED:g}", "median", "accuracy of each seed"]
    return [f"12 convolutions, {optimizer}", tables.table(header, lines)]


def depth_study(digits: Digits, seeds: int, optimizer: str, ways: Sequence[str]) -> list[str]:
    names = [name for name in NETWORKS if name not in ("cnn3", "vgg16")]
    sections = []
    for lr in (1e-2, 3e-2) if optimizer == "sgd" else (1e-3, 3e-3):
        rows = {way: partial(_of_network, Setting(way, optimizer=optimizer, lr=lr)) for way in ways}
        table = grid_table(rows, {n: n for n in names}, digits, seeds, "network")
        sections += [f"{optimizer}, learning rate {lr:g}", table]
    return sections


def trunk_study(digits: Digits, seeds: int, optimizer: str, ways: Sequence[str]) -> list[str]:
    sizes = [(16, 2), (16, 4), (16, 8), (16, 16), (16, 64), (16, 256), (8,), (16, 16, 16, 8)]
    rates = (1e-3, 6e-3)
    base = Setting("ours", optimizer=optimizer)
    rows = {str(s): partial(_at_rate, _changed(base, options={"hidden_sizes": s})) for s in sizes}
    rows |= {f"h of {d} components": partial(_at_rate, _changed(base, dimensions=d)) for d in (2, 8)}
    return [f"12 convolutions, {optimizer}", grid_table(rows, _rates(rates), digits, seeds, "trunk")]


def init_study(digits: Digits, seeds: int, optimizer: str, ways: Sequence[str]) -> list[str]:
    base = Setting("ours", optimizer=optimizer)
    rows = {
        str(i): partial(_at_rate, _changed(base, options={"init": i})) for i in ("fan_out", "zero", 0.03, 0.1, 0.3, 1.0)
    }
    return [f"12 convolutions, {optimizer}", grid_table(rows, _rates((1e-3, 6e-3)), digits, seeds, "init")]


def share_study(digits: Digits, seeds: int, optimizer: str, ways: Sequence[str]) -> list[str]:
    """The constant of the package itself, which is no argument."""
    lines, rates = [], (1e-3, 3e-3, 6e-3)
    for share in (SMALL_SHARE, 0.3, 0.5, 1.0):
        settings = [Setting("ours", optimizer=optimizer, lr=lr) for lr in rates]
        with _sharing(share):
            lines.append([f"{share}", *(cell(finals(setting, digits, seeds)) for setting in settings)])
    return [f"12 convolutions, {optimizer}", tables.table(["share", *_rates(rates)], lines)]


def shifted_study(digits: Digits, seeds: int, optimizer: str, ways: Sequence[str]) -> list[str]:
    """Labels that h shifts: by 0 to 3 with one component, eight regions with three."""
    rates = (1e-2, 3e-2) if optimizer == "sgd" else (1e-3, 3e-3, 6e-3)
    sections = []
    for dimensions in (1, 3):
        base = Setting("ours", "cnn3", optimizer, epochs=24, shift=True, dimensions=dimensions, decay=True)
        rows = {way: partial(_at_rate, _changed(base, way=way)) for way in ways if way != "plain"}
        rows |= {f"ours, {size}": partial(_at_rate, _changed(base, options={"hidden_sizes": size})) for size in TRUNKS}
        rows["ours, hypernetwork at 3 times the rate"] = partial(_at_rate, _changed(base, boost=3))
        sections += [
            f"3 convolutions, labels shifted by an h of {dimensions}, {optimizer}, {base.epochs} epochs, cosine decay",
            grid_table(rows, _rates(rates), digits, seeds, "trained by"),
        ]
    return sections


def heads_study(digits: Digits, seeds: int, optimizer: str, ways: Sequence[str]) -> list[str]:
    """Labels that h shifts, by head."""
    lr = 1e-2 if optimizer == "sgd" else 3e-3
    base = Setting("ours", "cnn3", optimizer, lr=lr, shift=True, decay=True)
    rows = {str(head): partial(_for_epochs, _changed(base, options={"head": head})) for head in HEADS}
    columns = {f"{epochs} epochs": epochs for epochs in (6, 24)}
    return [
        f"3 convolutions, labels shifted by h, {optimizer}, cosine decay from {lr:g}",
        grid_table(rows, columns, digits, seeds, "head"),
    ]


def final_study(digits: Digits, seeds: int, optimizer: str, ways: Sequence[str]) -> list[str]:
    """Trained to the end, the learning rate decaying to zero: final accuracy, and the first step near the plain one."""
    sections, every = [], 31
    for network in ("cnn12", "vgg16"):
        base = Setting("plain", network, optimizer, epochs=12, decay=True)
        # One seed for each rate, not among those of the table.
        rates = {lr: curve(_at_rate(base, lr), digits, seeds, every)[-1] for lr in (1e-3, 2e-3, 4e-3)}
        lr = max(rates, key=lambda lr: rates[lr])
        lines, target = [], 0.0
        for way in ways:
            setting = _changed(base, way=way, lr=lr)
            curves = [curve(setting, digits, seed, every) for seed in range(seeds)]
            target = target or statistics.mean(c[-1] for c in curves) - 0.01
            steps = [next((every * (k + 1) for k, a in enumerate(c) if a >= target), None) for c in curves]
            lines.append([way, cell([c[-1] for c in curves]), ", ".join(str(s or "never") for s in steps)])
            print(network, lr, lines[-1], flush=True)
        header = ["trained by", "final accuracy", f"steps to {target:.3f}, each seed"]
        found = ", ".join(f"{accuracy:.3f} at {rate:g}" for rate, accuracy in rates.items())
        sections += [
            f"{network}, {optimizer}, {base.epochs} epochs, cosine decay from {lr:g}, the plain network's best "
            f"({found} with seed {seeds})",
            tables.table(header, lines),
        ]
    return sections


def _changed(setting: Setting, **changes: Any) -> Setting:
    return Setting(**{**setting.__dict__, **changes})


def _at_rate(setting: Setting, lr: float) -> Setting:
    return _changed(setting, lr=lr)


def _for_epochs(setting: Setting, epochs: int) -> Setting:
    return _changed(setting, epochs=epochs)


def _of_network(setting: Setting, network: str) -> Setting:
    return _changed(setting, network=network)


def _rates(rates: Sequence[float]) -> dict[str, float]:
    return {f"{lr:g}": lr for lr in rates}


STUDIES = {
    "lr": lr_study,
    "edge": edge_study,
    "depth": depth_study,
    "trunk": trunk_study,
    "init": init_study,
    "share": share_study,
    "shifted": shifted_study,
    "heads": heads_study,
    "final": final_study,
}
NOTE = (
    "Accuracy on 2000 test digits at the end (3 epochs unless told), mean over h; in brackets lowest and highest seed."
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one study."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adam")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train", type=int, default=4000, help="training digits")
    parser.add_argument("--out", type=Path, default=None, help="where to write the page")
    arguments = parsed(with_data(parser, "mnist.npz"), argv)
    torch.set_num_threads(1)  # the networks are too small to gain by more
    warnings.filterwarnings("ignore", "Norm layers keep running statistics")
    digits = load(arguments.data, arguments.train)
    ways = [way for way, (variant, _) in WAYS.items() if variant in installed()]
    sections = STUDIES[arguments.study](digits, arguments.seeds, arguments.optimizer, ways)
    text = tables.page(f"Update matching: {arguments.study}", "update_matching", argv, [NOTE], sections)
    print(text)
    tables.write(text, arguments.out)


if __name__ == "__main__":
    main()
