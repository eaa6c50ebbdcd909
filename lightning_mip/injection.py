"""Putting generated weights into a network, in place, while it runs.

A forward pre-hook generates the weights once and puts them where the modules find them. They stay until the
``with at(...)`` block ends, so that activation checkpointing, which runs the forward again during the backward, sees
the same ones.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from lightning_mip.checks import check_finite, check_finite_in_step, warn_of_lost_write, warn_of_untrained
from lightning_mip.fused import watch_steps
from lightning_mip.generation import RERUN, Backwards, Generate, Generated, Mark, Part, check_rerun
from lightning_mip.hypernetwork import HyperNetwork
from lightning_mip.one_thread import OneThread
from lightning_mip.shown import shown
from lightning_mip.slots import Slots

_WITH_MODES = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._NormBase)
# Changes with a write to the parameter, and when training of it is switched on or off. No Python of its own, as each
# call of each layer looks at it.
_state = operator.attrgetter("_version", "requires_grad")


@dataclass(eq=False)
class _Block:
    """An open `at` block: its thread, and what was in force before it."""

    thread: int
    h: Mapping[str, Tensor] | None
    generated: Generated | None


class Injector:
    """The forward pre-hook that gives a primary network its generated weights.

    Attributes:
        root: the primary network.
        hypernet: the hypernetwork.
        names: generated parameter -> all its names in the primary.
        slots: where they are put.
        h: the values in force, or None.
        recipe: how the hypernetwork was made, so that a new one can be: arguments, or a function; None if not known.
        outside: called before each run outside of any block; None for nothing.
        frozen: names of trained parameters that are held while the network is hypernetized without theta0.
        fused_steps: how many steps fused optimizers have taken with what weights are made of.
        bound_places: component of ``h`` -> the attribute of the primary, or of what it holds, that the plug-in sets.
    """

    def __init__(self, root: nn.Module, hypernet: HyperNetwork, names: dict[str, list[str]]) -> None:
        self.root, self.hypernet, self.names = root, hypernet, names
        self.slots = Slots(root, names)
        self.h: Mapping[str, Tensor] | None = None
        self.recipe: Mapping[str, Any] | Callable[..., HyperNetwork] | None = None
        self.outside: Callable[[], None] | None = None
        self.bound_places: dict[str, tuple[Any, str]] = {}
        self.frozen: list[str] = []
        self._generated: Generated | None = None
        self._paused = False
        self._blocks: list[_Block] = []
        # The thread of a training step, between `use` and `clear`.
        self._step: int | None = None
        self._thread = OneThread(type(root).__name__)
        self._backwards = Backwards()
        self._checked = False
        self._warned = False
        self.fused_steps = 0
        # Only then does it generate others in evaluation.
        self._has_modes = any(isinstance(part, _WITH_MODES) for part in hypernet.modules())
        watch_steps(self)

    def __getstate__(self) -> dict[str, Any]:
        """A copy of a network starts outside of any `at` block, wherever it was made."""
        none = dict.fromkeys(("h", "_generated", "recipe", "outside"))  # a recipe may hold what cannot be pickled
        begun: dict[str, Any] = {"_paused": False, "_step": None, "_blocks": [], "_backwards": Backwards()}
        return {**self.__dict__, **none, **begun}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy counts the steps of its own parameters."""
        self.__dict__.update(state)
        watch_steps(self)

    @property
    def active(self) -> bool:
        """Whether an `at` block is open."""
        return bool(self._blocks)

    @property
    def _by_hand(self) -> bool:
        """Whether a call now is by hand: neither an `at` block nor a training step is open."""
        return not self._blocks and self._step is None

    @property
    def used(self) -> bool:
        """Whether a backward has ever reached generated weights."""
        return bool(self._backwards.reached)

    @property
    def ran(self) -> bool:
        """Whether a module was called with the weights that are in place."""
        return self._generated is not None and self._generated.mark.ran

    def __call__(self, module: nn.Module, args: Any) -> None:
        """Make sure, before ``module`` runs, that fresh weights are in place."""
        compiling = torch.compiler.is_compiling()
        if not compiling:
            self._thread.check()
        if self._paused:
            return
        if not compiling and self.outside is not None and self._by_hand:
            self.outside()
        if self._outdated(module, compiling):
            self._refresh()
        if self._generated is not None:
            self._generated.mark.ran = True

    @contextmanager
    def at(self, h: Mapping[str, Any], kept: Generated | None = None) -> Iterator[Generated | None]:
        """Run the primary with the weights of ``h``; nests, and restores what was there before, whatever happens.

        Args:
            h: component -> value, without batch dimension.
            kept: what an earlier block for the same ``h`` yielded; it is used again if it is still right.
        """
        checked = self.one(h)
        block = _Block(self._thread.enter(), self.h, self._generated)
        self._blocks.append(block)
        self.h, self._generated = checked, kept
        try:
            if kept is None or self._outdated(self.root, torch.compiler.is_compiling()):
                self._refresh()
            else:
                self.slots.fill(kept.weights)
            yield self._generated
        finally:
            self._check_unwritten()
            self._close(block)
        if self._generated is None:
            self._check_used()

    def _close(self, block: _Block) -> None:
        index = self._blocks.index(block)
        inner = self._blocks[index + 1 :]
        self._blocks.remove(block)
        if inner:
            self._thread.leave(block.thread)
            # They are still open, and go back to what was before both.
            inner[0].h, inner[0].generated = block.h, block.generated
            raise RuntimeError(
                "A `with mip.at(...)` block ended before one that began inside of it, such as one in a generator that "
                "is not at its end; what ran in it meanwhile had the h of the other. Give each its own "
                "mip.materialize(network, h), or end one block before the next."
            )
        self.h, self._generated = block.h, block.generated
        self.slots.empty() if self._generated is None else self.slots.fill(self._generated.weights)
        self._thread.leave(block.thread)

    def one(self, h: Mapping[str, Any]) -> dict[str, Tensor]:
        """Check one ``h``, without batch dimension, and turn its values into tensors."""
        if any(isinstance(value, Tensor) and torch._C._functorch.is_batchedtensor(value) for value in h.values()):
            raise ValueError(
                "torch.vmap over h gives a network several h at a time, but it runs with one; use a loop over them, or "
                "per_sample=True of HyperLightningModule."
            )
        checked = self._tensors(h)
        if self.hypernet.space.is_batched(checked):
            raise ValueError(
                "h has a batch dimension, but a network runs with one h at a time; take one value, or use "
                "per_sample=True of HyperLightningModule."
            )
        return checked

    def use(self, h: Mapping[str, Any]) -> None:
        """Set ``h`` for what follows until `clear`, outside of any block, and put its weights in place."""
        self.clear()
        checked, self._step = self._tensors(h), self._thread.enter()
        self.h = checked
        self._refresh()

    def _tensors(self, h: Mapping[str, Any]) -> dict[str, Tensor]:
        # Views, as hooks on the gradients of the given ones are to run once: where the backward arrives there.
        found, views = self.hypernet.space.tensors(h), torch.is_grad_enabled()
        return {n: value.view_as(value) if value.requires_grad and views else value for n, value in found.items()}

    def keep_for_backward(self, loss: Tensor) -> None:
        """Put the weights now in place back when the backward of ``loss`` begins: the network may run again in it.

        Of several losses, each is done before an earlier one begins: autograd goes back in the order of the forward.
        """
        kept = self._generated

        def put_back(gradient: Tensor) -> None:
            self._generated = kept
            if kept is not None:
                self.slots.fill(kept.weights)

        if loss.requires_grad:
            loss.register_hook(put_back)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the primary's own parameters in place."""
        thread = None if torch.compiler.is_compiling() else self._thread.enter()
        outer, self._paused = self._paused, True
        self.slots.empty()
        try:
            yield
        finally:
            self._paused = outer
            if not outer and self._generated is not None:
                self.slots.fill(self._generated.weights)
            if thread is not None:
                self._thread.leave(thread)

    @contextmanager
    def substituted(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Put given weights in place, whatever ``h`` is in force."""
        with self.paused():
            self.slots.fill(weights)
            try:
                yield
            finally:
                self.slots.empty()

    def clear(self) -> None:
        """Forget the generated weights."""
        self._thread.check()
        self._check_unwritten()
        self._generated = None
        self.slots.empty()
        if self._step is not None:
            self._thread.leave(self._step)
        self._step = None
        self._check_used()

    def weights(self, h: Mapping[str, Any]) -> dict[str, Tensor]:
        """Generate ``theta(h)``: name -> tensor, with a batch dimension if ``h`` has one."""
        own = self.slots.theta0()
        return {name: self._added(own[name], delta) for name, delta in self._deltas(h, own).items()}

    def generate(self, draws: Sequence[Mapping[str, Tensor]]) -> Iterator[Generated]:
        """Generate the weights of several ``h`` together: the head is read once, and its gradient is written once.

        Each is taken just before its block, ``at(h, kept=...)``, as a backward meets what was made last first.
        """
        # Of one node, torch.func and forward-mode AD see none of its inside.
        transformed = torch._C._are_functorch_transforms_active()
        whole = transformed or torch.autograd.forward_ad._current_level >= 0
        leaves = self.leaves() if torch.is_grad_enabled() and not whole else []
        marks, names = [Mark(h, self._backwards) for h in draws], list(self.hypernet.shapes)
        # Of one h, as in most steps, the node of the generation notes the backward itself, which saves one more.
        mark = marks[0] if len(marks) == 1 else None
        flat = Generate.apply(lambda: self._flat(draws), mark, *leaves) if leaves else self._flat(draws)  # type: ignore[no-untyped-call]
        makers, theta0 = self._sources()
        made_in, theta0_in = [*map(_state, makers)], {id(p): _state(p) for p in theta0}
        versions = (*made_in, *theta0_in.values(), *_addresses(makers), *_addresses(theta0), *self._nested())
        circumstances = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), transformed
        since = self._mode(), self.fused_steps
        for k, (h, own) in enumerate(zip(draws, marks, strict=True)):
            part = flat[k * len(names) : (k + 1) * len(names)]
            if leaves and mark is None:
                part = Part.apply(own, *part)  # type: ignore[no-untyped-call]
            weights = dict(zip(names, part, strict=True))
            if not transformed:
                check_finite_in_step(weights, self.hypernet.space, h)
            yield Generated(weights, versions, makers, made_in, theta0, theta0_in, *circumstances, own, *since)

    def _flat(self, draws: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
        return [weight for each in self._weights_of(draws) for weight in each.values()]

    def _weights_of(self, draws: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
        if len(draws) == 1:
            return [self.weights(draws[0])]
        own = self.slots.theta0()
        together = {name: torch.stack([h[name] for h in draws]) for name in self.hypernet.space}
        deltas = {name: delta.unbind() for name, delta in self._deltas(together, own).items()}
        # Not views of one tensor, of which a write to one would change the version of all.
        return [{name: self._added(own[name], each[k]) for name, each in deltas.items()} for k in range(len(draws))]

    def _mode(self) -> bool:
        """Whether the hypernetwork runs in training mode, which `network.eval()` ends as well."""
        return bool(self.hypernet.training and self.root.training)

    def sources(self) -> Iterator[Tensor]:
        """The parameters that weights may be made of."""
        yield from self.hypernet.parameters()
        yield from self.root.parameters()

    def _deltas(self, h: Mapping[str, Any], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # Outside of Lightning, `network.eval()` does not reach the hypernetwork, which is no child of it.
        apart = self.hypernet.training and not self._mode() and not torch.compiler.is_compiling()
        with evaluated(self.hypernet) if apart else nullcontext():
            deltas: dict[str, Tensor] = self.hypernet(h)
        for name in deltas:
            self.slots.check_shape(name, own[name], self.hypernet.shapes[name])
        return deltas

    def _added(self, theta0: Tensor, delta: Tensor) -> Tensor:
        delta = delta.to(theta0.dtype)
        # A copy, as the deltas are views of one tensor and a layer may write to its weight (max_norm of Embedding).
        return theta0 + delta if self.hypernet.residual else delta.clone()

    def check_finite_at(self, h: Mapping[str, Any]) -> None:
        """Generate the weights of ``h`` and raise FloatingPointError if they are not finite."""
        with torch.no_grad(), evaluated(self.hypernet):
            check_finite(self.weights(h), self.hypernet.space, h)

    def leaves(self) -> list[Tensor]:
        """Everything that weights are generated from and that wants a gradient."""
        theta0 = self.slots.theta0().values() if self.hypernet.residual else ()
        given = list((self.h or {}).values())
        nested = [leaf for each in injectors(self.hypernet) for leaf in each.leaves()]
        # By identity, as the theta0 of a nested hypernetwork are parameters of this one.
        found = {id(tensor): tensor for tensor in (*given, *theta0, *self.hypernet.parameters(), *nested)}
        return [tensor for tensor in found.values() if tensor.requires_grad]

    def _outdated(self, module: nn.Module, compiling: bool) -> bool:
        now = self._generated
        unfit = now is None or now.mark.spent or now.ended or (torch.is_grad_enabled() and not now.differentiable)
        if compiling:
            return unfit
        task = torch._C._current_graph_task_id()
        if task != -1:
            if now is None or not now.mark.ran or (torch.is_grad_enabled() and not now.differentiable):
                raise RuntimeError(RERUN)
            check_rerun()
            self._backwards.task, self._backwards.h = task, now.mark.h
            return False
        if now is None or unfit or now.fused != self.fused_steps or (self._has_modes and now.mode != self._mode()):
            return True
        if now.inference and not torch.is_inference_mode_enabled():
            return True
        if self._by_hand:
            # A call by hand: anything may have changed since the last one, by a write that versions do not see too.
            return module is self.root or now.versions != self._versions()
        if module is self.root:
            return now.versions != self._versions()
        # A layer called by itself looks at what it needs, as it may be one of very many.
        for name, parameter in module._parameters.items():
            state = now.theta0.get(id(parameter))
            if state is None:
                if parameter is not None and self._is_new(now, module, name, parameter):
                    return True
            elif state != _state(parameter):
                return True
        return [*map(_state, now.makers)] != now.made_in

    def _is_new(self, now: Generated, module: nn.Module, name: str, parameter: Tensor) -> bool:
        """Whether a parameter that the weights know nothing of has taken the place of one that they are made of."""
        if now.slots is None:
            now.slots = self.slots.keys()
        return (id(module), name) in now.slots and not parameter.is_inference()

    def _refresh(self) -> None:
        h = self.h
        if h is None:
            raise RuntimeError(
                f"{type(self.root).__name__} is hypernetized and needs a value of h to run: use "
                f"`with mip.at(network, {', '.join(f'{n}=...' for n in self.hypernet.space)}):`, or "
                "mip.materialize for a plain network."
            )
        if torch.compiler.is_compiling():
            self.slots.fill(self.weights(h))
            return
        self._check_unwritten()
        try:
            (generated,) = self.generate([h])
        except BaseException:
            with self._thread.free():
                self.slots.empty()
            raise
        with self._thread.free():
            if self.h is not h:  # another thread has run it meanwhile
                self._refresh()
                return
            self._generated = generated
            # Over the old ones, which a call by hand in another thread may be about to read.
            self.slots.fill(generated.weights)

    def _versions(self) -> tuple[Any, ...]:
        """Changes whenever the weights would, but with a write by ``.data`` to what they are made of."""
        makers, theta0 = self._sources()
        states = *map(_state, makers), *map(_state, theta0)
        return (*states, *_addresses(makers), *_addresses(theta0), *self._nested())

    def _sources(self) -> tuple[list[Tensor], list[Tensor]]:
        """The parameters that weights are made of, the hypernetwork's and theta0, as far as writes to them show."""
        given: tuple[Iterable[Tensor], ...] = (self.hypernet.parameters(), self.slots.theta0().values())
        makers, theta0 = ([p for p in parameters if not p.is_inference()] for parameters in given)
        return makers, theta0

    def _nested(self) -> list[Any]:
        return [(each._generated and each._generated.mark, each._versions()) for each in injectors(self.hypernet)]

    def _check_used(self) -> None:
        reached = self._backwards.reached
        if not self._checked and reached:
            self._checked = True
            warn_of_untrained(self.hypernet.shapes, reached, stacklevel=7)

    def _check_unwritten(self) -> None:
        if not self._warned and self._generated is not None:
            self._warned = warn_of_lost_write(self._generated, stacklevel=6)


def _addresses(tensors: list[Tensor]) -> list[int]:
    """Where tensors are in memory, and so whether others have taken their place."""
    if tensors and isinstance(tensors[0], FakeTensor):  # nowhere, and asking is warned of
        return [*map(id, tensors)]
    try:
        return [*map(Tensor.data_ptr, tensors)]
    except RuntimeError:  # those of torch.func are nowhere
        return [*map(id, tensors)]


@contextmanager
def evaluated(module: nn.Module) -> Iterator[None]:
    """Evaluate a module inside the block, and leave each part of it in its mode afterwards."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def check_module(module: Any) -> None:
    """Raise TypeError for what is no module."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"module is {shown(module)}, expected a torch.nn.Module.")


def injectors(module: nn.Module) -> list[Injector]:
    """Injectors whose primary network is ``module`` or inside it."""
    check_module(module)
    found: dict[int, Injector] = {}
    for child in module.modules():
        for hook in child._forward_pre_hooks.values():
            if isinstance(hook, Injector) and hook.root is child:
                found[id(hook)] = hook
    return list(found.values())


def the_injector(module: nn.Module) -> Injector:
    """The one injector of ``module``; ValueError if it has none or several."""
    found = injectors(module)
    if not found:
        raise ValueError(f"{type(module).__name__} is not hypernetized; call mip.hypernetize on it first.")
    if len(found) > 1:
        paths = [name for name, child in module.named_modules() if any(child is each.root for each in found)]
        raise ValueError(
            f"{type(module).__name__} holds {len(found)} hypernetized networks: {', '.join(paths)}; pass one of them."
        )
    return found[0]


@contextmanager
def at(module: nn.Module, h: Mapping[str, Any] | None = None, /, **components: Any) -> Iterator[None]:
    """Run a hypernetized network with the weights of one ``h``; call ``backward`` inside the block.

    Weights are generated once, and anew when what they are made of has changed: by an optimizer, ``load_state_dict``,
    another parameter in the place of one. Two things cannot be seen, after which a new block is right: numbers written
    through ``parameter.data``, and, by a network that ``torch.compile`` runs, changes without a backward before them.

    Args:
        module: a hypernetized network, or a module that holds exactly one.
        h: component -> value.
        **components: the same, for names that are Python identifiers.

    Raises:
        ValueError: ``module`` is not hypernetized, or ``h`` lacks a component, has an unknown one or a value outside
            the support of its prior.

    >>> import lightning_mip as mip
    >>> net = nn.Linear(3, 2)
    >>> hyper = mip.hypernetize(net, {"lam": mip.Uniform(0, 1)})
    >>> with at(net, lam=0.3):
    ...     net(torch.ones(1, 3)).sum().backward()
    >>> net.weight.grad.shape
    torch.Size([2, 3])
    """
    injector = the_injector(module)
    with injector.at(injector.hypernet.space.given(h, components)):
        yield
