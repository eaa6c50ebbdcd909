"""A LightningModule's state at each of several values of ``h``, kept apart as if each had a module of its own."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable, Iterator
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from lightning_mip.contents import Kept, is_kept, items_of, reached_from
from lightning_mip.copies import with_values, without_graphs

# What every LightningModule has, of either namespace, and what a HyperLightningModule has; the rest is its author's.
NOT_THE_AUTHORS = frozenset(vars(L.LightningModule())) | {
    *("_hparams", "_hparams_name", "_hparams_initial"),
    *("_current", "_draw_losses", "_draws", "_eval_grid", "_evaluation", "_grid", "_injector", "_predict_h"),
    *("_evaluated", "_sampler"),
}
# Where a registered metric is: its owner and the name there.
_Place = tuple[nn.Module, str]


class _State:
    """The state at one ``h``: the author's attributes, what is in the mutable ones, and the metrics."""

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}
        self.contents: dict[int, Any] = {}
        self.metrics: dict[_Place, nn.Module] = {}
        # id of a metric of the module -> that of this point; those that are in no module, with what they stand for.
        self.twins: dict[int, Any] = {}
        self.loose: dict[int, tuple[Any, Any]] = {}


class Apart:
    """Keeps the states of a module at ``points`` values of ``h`` apart.

    Mutable things stay what they are, and their contents change: who shares them (a network that reads the module's
    dict, a callback) sees those of the ``h`` in force. Metrics, which Lightning asks for their values only at the end
    of an epoch, are cloned; the middle point has the module's own, unless they hold what training has put there.
    """

    def __init__(self, module: Any, points: int) -> None:
        self.module, self.points, self.middle = module, points, points // 2
        self._states: list[_State] = []
        self._things: dict[int, Kept] = {}
        self._own: dict[_Place, nn.Module] = {}
        # What was left at rest, by which to see what others change: attributes, and the numbers in metrics.
        self._left: dict[str, Any] = {}
        self._left_in: dict[_Place, list[Any] | None] = {}

    def begin(self) -> None:
        """Begin a run: take over what has changed since the last one."""
        self._states = self._states or [_State() for _ in range(self.points)]
        with torch.inference_mode(False):  # what is cloned may be used outside of this evaluation
            self._renew_metrics()
            reached = reached_from(_attributes(self.module).values())
            ids = set(map(id, reached))
            self._things = {key: kept for key, kept in self._things.items() if key in ids}
            self._follow(reached)

    def follow(self) -> None:
        """Take over what others have set between two hooks, such as a callback."""
        now = _attributes(self.module)
        changed = [value for name, value in now.items() if value is not self._left.get(name, self)]
        with torch.inference_mode(False):
            self._follow(reached_from(changed))

    def install(self, index: int) -> None:
        """Bring the module into its state at one ``h``."""
        state = self._states[index]
        for name in _attributes(self.module):
            if name not in state.attributes:
                del self.module.__dict__[name]
        self.module.__dict__.update(state.attributes)
        for key, content in state.contents.items():
            self._things[key].put(content)
        for (owner, name), metric in state.metrics.items():
            owner._modules[name] = metric

    def note(self, index: int) -> None:
        """Note the state that a hook has left."""
        state = self._states[index]
        state.attributes = _attributes(self.module)
        state.contents = {key: kept.take() for key, kept in self._things.items()}
        state.metrics = {(owner, name): getattr(owner, name) for owner, name in state.metrics}

    def rest(self) -> None:
        """Bring the module into its state at the middle point."""
        self.install(self.middle)
        self._left = _attributes(self.module)

    def end(self) -> None:
        """End a run: the module has its own metrics."""
        self.rest()
        for (owner, name), own in self._own.items():
            self._left_in[owner, name] = _numbers(own) if owner._modules[name] is own else None
            owner._modules[name] = own

    def _renew_metrics(self) -> None:
        """Clone the metrics that are new or were changed since the last run."""
        self._own = dict(registered_metrics(self.module))
        memos: list[dict[int, Any]] = [{} for _ in self._states]
        for place, own in self._own.items():
            left = self._left_in.get(place)
            again = left is not None and _equal(left, _numbers(own))
            # What training has put into a metric is its own: evaluation goes on from it, and leaves it alone.
            foreign = any(part._update_count for part in _parts(own))
            for index, (state, memo) in enumerate(zip(self._states, memos, strict=True)):
                if again and place in state.metrics:
                    state.metrics[place] = state.metrics[place].to(self.module.device)
                elif index == self.middle and not foreign:
                    state.metrics[place] = own
                else:
                    state.metrics[place] = _cloned(own, memo)
        for state in self._states:
            state.metrics = {place: state.metrics[place] for place in self._own}
            state.twins = {key: twin for key, (_, twin) in state.loose.items()} | {
                id(part): twin
                for place, own in self._own.items()
                for part, twin in zip(own.modules(), state.metrics[place].modules(), strict=True)
            }

    def _follow(self, reached: list[Any]) -> None:
        now = _attributes(self.module)
        changed = {name: value for name, value in now.items() if value is not self._left.get(name, self)}
        before = self._states[self.middle].contents
        for key, kept in self._things.items():
            content, earlier = kept.take(), before[key]
            if content is not earlier:
                for state in [state for state in self._states if state.contents[key] is earlier]:
                    state.contents[key] = self._content_at(content, state)
        fresh = {id(thing): Kept(thing) for thing in reached if is_kept(thing) and id(thing) not in self._things}
        self._things |= fresh
        for state in self._states:
            # One that only this h has set is none that somebody has deleted.
            own = {name: value for name, value in state.attributes.items() if name in now or name not in self._left}
            state.attributes = own | {name: self._at_point(value, state) for name, value in changed.items()}
            contents = {key: self._content_at(kept.take(), state) for key, kept in fresh.items()}
            state.contents = {key: contents.get(key, state.contents.get(key)) for key in self._things}
        self._left = now

    def _at_point(self, value: Any, state: _State) -> Any:
        """A value, with the metrics of a state where the module has its own; the same object where it has none."""
        if isinstance(value, (Metric, MetricCollection)):
            if id(value) not in state.twins:
                own = state is self._states[self.middle]
                state.twins[id(value)] = value if own else _cloned(value, {})
                state.loose[id(value)] = value, state.twins[id(value)]
            return state.twins[id(value)]
        if not isinstance(value, tuple):
            return value
        items = [self._at_point(item, state) for item in items_of(value)]
        return with_values(value, items) if _differ(items, items_of(value)) else value

    def _content_at(self, content: Any, state: _State) -> Any:
        """The same of what is in a container."""
        if isinstance(content, (list, dict)) and items_of(content):
            items = [self._at_point(item, state) for item in items_of(content)]
            if _differ(items, items_of(content)):
                return dict(zip(content, items, strict=True)) if isinstance(content, dict) else items
        return content


def registered_metrics(module: nn.Module) -> Iterator[tuple[_Place, nn.Module]]:
    """The metrics in a module, not those in other metrics, and where they are."""
    for name, child in module._modules.items():
        if isinstance(child, (Metric, MetricCollection)):
            yield (module, name), child
        elif child is not None:
            yield from registered_metrics(child)


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in NOT_THE_AUTHORS}


def _parts(metric: nn.Module) -> list[Metric]:
    return [part for part in metric.modules() if isinstance(part, Metric)]


def _cloned(metric: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Clone a metric, also one that holds a graph, as those of training may."""
    for key, tensor in without_graphs(metric).items():
        memo.setdefault(key, tensor)
    return copy.deepcopy(metric, memo)


def _numbers(metric: nn.Module) -> list[Any]:
    """What a metric has accumulated, by which to see that it has changed."""
    found: list[Any] = []
    for part in _parts(metric):
        for value in vars(part).values():
            if isinstance(value, (Tensor, int, float)):
                found += [value, value._version if isinstance(value, Tensor) and not value.is_inference() else 0]
            elif isinstance(value, list):
                found += [len(value), *value]
    return found


def _equal(one: list[Any], other: list[Any]) -> bool:
    number = (int, float)
    pairs = list(zip(one, other, strict=False))
    return len(one) == len(other) and all(a is b or (isinstance(a, number) and a == b) for a, b in pairs)


def _differ(one: Iterable[Any], other: Iterable[Any]) -> bool:
    return not all(map(operator.is_, one, other))
