"""Generation as one autograd node, and the record of what has happened with the weights that it gave."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

version_of = operator.attrgetter("_version")

RERUN = (
    "The network runs again during the backward (activation checkpointing), but the weights of its forward are no "
    "longer in place; call backward inside the `with mip.at(...)` block of the forward."
)

REENTRANT = (
    "Activation checkpointing with use_reentrant=True runs a backward for each of its parts, and several processes "
    "would average the gradients of the hypernetwork before the last of them; use use_reentrant=False, or one process."
)


def check_rerun() -> None:
    """Raise RuntimeError where the network runs again inside a backward of a kind that several processes get wrong."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    node = torch._C._current_autograd_node()
    if torch.distributed.get_world_size() > 1 and node is not None and node.name() == "CheckpointFunctionBackward":
        raise RuntimeError(REENTRANT)


@dataclass
class Backwards:
    """What the backwards through one network have met.

    Attributes:
        task, h: the last backward in which the network ran again, and the values it ran with.
        reached: indices of the generated tensors that got a gradient.
    """

    task: int = -1
    h: Mapping[str, Tensor] | None = None
    reached: set[int] = field(default_factory=set)


@dataclass(eq=False)
class Mark:
    """What has happened with the weights of one generation.

    Attributes:
        h: their values.
        backwards: the record of their network.
        ran: a module was called with them.
        spent: a backward has used them: an optimizer may have changed what they are made of.
        versions: theirs at the end of that backward; before it a layer may write to its weight (max_norm of Embedding).
    """

    h: Mapping[str, Tensor]
    backwards: Backwards
    ran: bool = False
    spent: bool = False
    versions: Sequence[int] = ()


@dataclass
class Generated:
    """The weights of one ``h``, and the circumstances in which they are still right.

    Attributes:
        weights: name -> generated tensor.
        versions: states of everything that the weights are made of.
        makers: the hypernetwork's parameters.
        made_in: their states.
        own: the parameters of the primary that they stand in for; kept, as memory that is free gets another tensor.
        theta0: id of such a parameter -> its state.
        differentiable: made with gradients.
        inference: made in inference mode.
        transformed: made inside a function that torch.func transforms.
        mark: what has happened with them.
        mode: whether the hypernetwork was in training mode.
        fused: how many steps fused optimizers had taken with what they are made of.
        slots: where ``own`` are: id of the module, attribute; None until somebody asks.
    """

    weights: dict[str, Tensor]
    versions: tuple[Any, ...]
    makers: Sequence[Tensor]
    made_in: Sequence[tuple[int, bool]]
    own: Sequence[Tensor]
    theta0: dict[int, tuple[int, bool]]
    differentiable: bool
    inference: bool
    transformed: bool
    mark: Mark
    mode: bool
    fused: int
    slots: set[tuple[int, str]] | None = None

    @property
    def ended(self) -> bool:
        """Whether the transformation in which they were made is over."""
        dead = torch._C._functorch.is_dead_tensor_wrapper  # type: ignore[attr-defined]
        return self.transformed and any(map(dead, self.weights.values()))

    @property
    def nbytes(self) -> int:
        """Size of the weights in bytes."""
        return sum(weight.nbytes for weight in self.weights.values())


def note_backward(mark: Mark, weights: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Note a backward through the weights of one ``h``; RuntimeError if the network ran again in it at another."""
    seen = mark.backwards
    if seen.task == torch._C._current_graph_task_id() and seen.h is not mark.h:
        raise RuntimeError(RERUN)
    mark.spent = True
    mark.versions = [*map(version_of, weights)]
    seen.reached.update(index for index, gradient in enumerate(gradients) if gradient is not None)


class Part(torch.autograd.Function):
    """The weights of one ``h`` of several that were generated together: passes them on, and notes their backward."""

    @staticmethod
    def forward(ctx: Any, mark: Mark, *weights: Tensor) -> tuple[Tensor, ...]:
        """Pass the weights on; what is written to them is written to what was generated."""
        ctx.mark, ctx.weights = mark, weights
        ctx.set_materialize_grads(False)
        return tuple(weight.detach() for weight in weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """Note it, and pass the gradients on."""
        note_backward(ctx.mark, ctx.weights, gradients)
        return None, *gradients


class Generate(torch.autograd.Function):
    """Generation, of one ``h`` or of several, as one node whose own graph outlives a backward.

    Several losses of one step, each with its own backward, then work as they do with ordinary parameters, although they
    share one generation. Every parameter of the hypernetwork gets a gradient (zero where unused), as DDP requires.
    """

    @staticmethod
    def forward(
        ctx: Any, generate: Callable[[], list[Tensor]], mark: Mark | None, *leaves: Tensor
    ) -> tuple[Tensor, ...]:
        """Generate, and keep the graph; with a mark, of one ``h``, its backward is noted there."""
        with torch.enable_grad():
            ctx.generated = generate()
        ctx.generate, ctx.leaves, ctx.mark = generate, leaves, mark
        ctx.set_materialize_grads(False)
        return tuple(tensor.detach() for tensor in ctx.generated)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """Send the gradients of the weights on to the leaves."""
        if ctx.mark is not None:
            note_backward(ctx.mark, ctx.generated, gradients)  # which share their versions with the weights
        generated, again = ctx.generated, torch.is_grad_enabled()
        if again:
            # A second backward frees the graph it goes through, so it gets one of its own.
            generated = ctx.generate()
            if not all(map(torch.equal, generated, ctx.generated)):
                raise RuntimeError(
                    "Second derivatives need the same weights twice, but generating them again gave others; backward "
                    "before the optimizer's step, and without dropout in the hypernetwork."
                )
        given = [_dense(gradient, tensor) for gradient, tensor in zip(gradients, ctx.generated, strict=True)]
        # Manual optimization toggles what its optimizers train, also between the generation and this backward.
        wanted = [leaf for leaf in ctx.leaves if leaf.requires_grad]
        try:
            with _without_hooks(wanted):
                found = iter(
                    torch.autograd.grad(
                        generated, wanted, given, retain_graph=True, create_graph=again, allow_unused=True
                    )
                    if wanted
                    else ()
                )
        except RuntimeError as error:
            if "modified by an inplace operation" not in str(error):
                raise
            raise RuntimeError(
                "This backward goes through weights that were generated before an optimizer's step; run the network "
                "again after the step. Parameters that a method reads itself, not through a layer, are generated anew "
                "only by a call of the whole network or by a new `with mip.at(...)` block."
            ) from error
        return None, None, *(next(found) if leaf.requires_grad else None for leaf in ctx.leaves)


@contextmanager
def _without_hooks(leaves: Sequence[Tensor]) -> Iterator[None]:
    """Hold back the hooks on gradients of leaves, which run where the backward that this is a part of arrives there."""
    hooked = [(leaf, leaf._backward_hooks) for leaf in leaves if leaf._backward_hooks]
    for leaf, _ in hooked:
        leaf._backward_hooks = None
    try:
        yield
    finally:
        for leaf, hooks in hooked:
            leaf._backward_hooks = hooks


def _dense(gradient: Tensor | None, tensor: Tensor) -> Tensor:
    if gradient is None:
        return torch.zeros_like(tensor)
    return gradient.to_dense() if gradient.is_sparse else gradient
