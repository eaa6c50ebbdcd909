"""Does the hypernetwork matter: the score with the weights of the right ``h``, of another ``h``, and of none."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_mip.batches import batch_size
from lightning_mip.diagnosis.subject import Subject

# Of each batch, so many numbers of the output are looked at.
_OUTPUTS = 2**20
# Losses of other h at the same weights that differ by less, relatively, are equal but for rounding.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Case:
    """One ``h`` and the batches that go with it: all of them, or the one that brought it."""

    h: dict[str, Tensor]
    batches: list[Any]
    drawn: bool


@dataclass(frozen=True)
class Matter:
    """Scores of the same data; "right" is the loss of ``h`` with the weights of ``h``, meaned over draws of ``h``.

    Attributes:
        metric: what is scored.
        mode: ``min`` or ``max``, which of two scores is better.
        right: with the weights of the right ``h``.
        shuffled: with the weights of another draw; None if there is only one.
        theta0: without the hypernetwork's part; None where that is all there is.
        best_single: with the weights of the one draw that is best for all.
        best_single_h: that draw.
        components: component -> score with the weights of an ``h`` that is right but for this component; None if all
            draws have the same.
        noise: standard error of ``shuffled - right`` over batches; 0 of a single batch.
        reads_h: whether the score itself depends on ``h``, at fixed weights; None where each batch brings its own.
        output_share: share of the variation of the network's output that ``h`` explains; None without outputs.
    """

    metric: str
    mode: str
    right: float
    shuffled: float | None
    theta0: float | None
    best_single: float
    best_single_h: str
    components: dict[str, float | None]
    noise: float
    reads_h: bool | None
    output_share: float | None

    @property
    def gap(self) -> float | None:
        """How much worse another ``h`` is than the right one, relative to the larger of the two scores."""
        return None if self.shuffled is None else self.relative(self.shuffled)

    def relative(self, score: float) -> float:
        """How much worse a score is than that of the right ``h``, relative to the larger of the two."""
        worse = score - self.right if self.mode == "min" else self.right - score
        scale = max(abs(score), abs(self.right))
        return worse / scale if scale else 0.0

    def worse(self, score: float) -> float | None:
        """How much worse a score is, as a share of that of the right ``h``; None where that one is 0."""
        worse = score - self.right if self.mode == "min" else self.right - score
        return worse / abs(self.right) if self.right else None

    @property
    def noise_share(self) -> float:
        """The noise, relative as the gap is."""
        scale = max(abs(self.shuffled or 0.0), abs(self.right))
        return self.noise / scale if scale else 0.0


def cases(subject: Subject, batches: Sequence[Any], draws: int, seed: int) -> list[Case]:
    """``draws`` values of ``h`` with all batches, or each batch with the ``h`` that it brings."""
    own = [subject.own_h(batch) for batch in batches]
    brought = [Case(h, [batch], drawn=False) for h, batch in zip(own, batches, strict=True) if h is not None]
    if brought:
        return brought
    drawn = subject.space.sample(seed=seed, step=0, n=draws, strategy="sobol")
    hs = [{name: value[k] for name, value in drawn.items()} for k in range(draws)]
    return [Case(h, list(batches), drawn=True) for h in hs]


@torch.no_grad()
def matter(subject: Subject, all_cases: Sequence[Case], mode: str, seed: int) -> Matter:
    """Score every case with the weights of every case."""
    hs, drawn = [case.h for case in all_cases], all_cases[0].drawn
    outputs = _Outputs(subject)
    # Rows: the h of the loss; columns: the h of the weights; then the batches.
    scores = [[_scores(subject, case, h, seed, outputs) for h in hs] for case in all_cases]
    table = torch.tensor(scores, dtype=torch.float64)
    sizes = [[float(batch_size(batch) or 1) for batch in case.batches] for case in all_cases]
    weights = torch.tensor(sizes, dtype=torch.float64).unsqueeze(1)
    weights /= weights.sum()
    other = torch.tensor([[not _equal(one, two) for two in hs] for one in hs])
    right = table.diagonal().T.unsqueeze(1)
    shuffled = _mean_over_others(table, other)
    single = (table * weights).sum((0, 2))
    best = int(single.argmin() if mode == "min" else single.argmax())
    by_weights = table.mean(2)
    spread = by_weights.amax(0) - by_weights.amin(0)
    return Matter(
        metric=subject.metric or "loss",
        mode=mode,
        right=float((right * weights).sum()),
        shuffled=None if shuffled is None else float((shuffled * weights).sum()),
        theta0=_theta0(subject, all_cases, seed),
        best_single=float(single[best]),
        best_single_h=_label(hs[best]),
        components={name: _component(subject, all_cases, name, seed) for name in subject.space},
        noise=0.0 if shuffled is None else _standard_error((shuffled - right).squeeze(1), drawn),
        reads_h=bool((spread > _ROUNDING * by_weights.abs().amax(0)).any()) if drawn else None,
        output_share=outputs.share(),
    )


class _Outputs:
    """Sums over ``h`` of what the network puts out, of each batch that is seen at more than one."""

    def __init__(self, subject: Subject) -> None:
        self.root = subject.injector.root
        self.batches: dict[int, list[Tensor]] = {}
        self.seen: dict[int, list[Tensor]] = {}

    @contextmanager
    def of(self, batch: Any) -> Iterator[None]:
        found: list[Tensor] = []

        def keep(module: Any, args: Any, output: Any) -> None:
            leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
            found.extend(leaf.flatten(1) if leaf.ndim > 1 else leaf.reshape(-1, 1) for leaf in leaves)

        hook = self.root.register_forward_hook(keep)
        try:
            yield
        finally:
            hook.remove()
        if found:
            rows = found[0][: max(_OUTPUTS // max(found[0].shape[1], 1), 1)]
            self._add(id(batch), rows.detach().double().cpu())

    def _add(self, key: int, values: Tensor) -> None:
        # Relative to the first, so that nearly equal outputs do not vanish in rounding.
        first, total, squares, count = self.seen.setdefault(
            key, [values, torch.zeros_like(values), torch.zeros_like(values), torch.zeros(())]
        )
        if values.shape == first.shape:
            total += values - first
            squares += (values - first) ** 2
            count += 1

    def share(self) -> float | None:
        """The mean variance over ``h`` of an output, as a share of its variance over ``h`` and samples."""
        if not self.seen:
            return None
        by_h = [((squares - total**2 / n) / n).mean(0) for _, total, squares, n in self.seen.values()]
        means = [first + total / n for first, total, _, n in self.seen.values()]
        if len({mean.shape[1:] for mean in means}) > 1:
            by_h, means = [v.mean(0, keepdim=True) for v in by_h], [mean.reshape(-1, 1) for mean in means]
        of_h = float(torch.stack(by_h).mean(0).clamp(min=0).sum())
        of_samples = float(torch.cat(means).var(0, correction=0).sum())
        return of_h / (of_h + of_samples) if of_h + of_samples > 0 else 0.0


def _scores(subject: Subject, case: Case, h: Mapping[str, Tensor], seed: int, outputs: _Outputs) -> list[float]:
    scores = []
    with subject.at(case.h), subject.injector.substituted(subject.injector.weights(h)):
        for batch in case.batches:
            torch.manual_seed(seed)  # noise of the step itself is to be the same at all h
            with outputs.of(batch):
                scores.append(subject.score(batch))
    return scores


def _theta0(subject: Subject, all_cases: Sequence[Case], seed: int) -> float | None:
    if not subject.injector.hypernet.residual:
        return None
    total = weight = 0.0
    for case in all_cases:
        with subject.at(case.h), subject.injector.paused():
            for batch in case.batches:
                torch.manual_seed(seed)
                size = float(batch_size(batch) or 1)
                total, weight = total + size * subject.score(batch), weight + size
    return total / weight


def _component(subject: Subject, all_cases: Sequence[Case], name: str, seed: int) -> float | None:
    """The score with weights that are of the right ``h`` but for one component, which is of another case."""
    total = weight = 0.0
    for index, case in enumerate(all_cases):
        following = itertools.chain(all_cases[index + 1 :], all_cases[:index])
        other = next((each.h[name] for each in following if not torch.equal(each.h[name], case.h[name])), None)
        if other is None:
            continue
        with subject.at(case.h), subject.injector.substituted(subject.injector.weights({**case.h, name: other})):
            for batch in case.batches:
                torch.manual_seed(seed)
                size = float(batch_size(batch) or 1)
                total, weight = total + size * subject.score(batch), weight + size
    return total / weight if weight else None


def _mean_over_others(table: Tensor, other: Tensor) -> Tensor | None:
    """For each row, the mean over the columns of another ``h``; shape ``(rows, 1, batches)``."""
    if not other.any(1).all():
        return None
    mask = other.unsqueeze(2).to(table)
    return (table * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)


def _standard_error(differences: Tensor, drawn: bool) -> float:
    """Of the mean over batches, each of which stands in a column where ``h`` is drawn, and in a row where it is not."""
    by_batch = differences.mean(0) if drawn else differences.flatten()
    if len(by_batch) < 2:
        return 0.0
    return float(by_batch.std()) / math.sqrt(len(by_batch))


def _label(h: Mapping[str, Tensor]) -> str:
    """Short, as it is read by people."""
    numbers = {name: ":".join(f"{x:.3g}" for x in value.reshape(-1).tolist()) for name, value in h.items()}
    return ",".join(f"{name}={number}" for name, number in numbers.items())


def _equal(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one)
