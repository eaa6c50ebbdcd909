"""Run a module at one ``h``, with the attributes that a plug-in has bound, and take what it predicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor

from lightning_mip.batches import inputs_of
from lightning_mip.binding import BOUND, Place, bound_at, places_of, with_gradient
from lightning_mip.hooks import overrides
from lightning_mip.injection import the_injector
from lightning_mip.is_hyper import is_hyper
from lightning_mip.probe import replaced

H = Mapping[str, Tensor]


@contextmanager
def at_h(model: Any, h: H, kept: Any = None, attributes: H | None = None) -> Iterator[Any]:
    """Run the network in ``model`` at ``h``, with the attributes that a plug-in has bound; yields weights to be kept.

    Args:
        model: a module with a hypernetized network, as the plug-in has left it, or a copy of one; or the network.
        h: component -> value.
        kept: what an earlier block for the same ``h`` yielded.
        attributes: the same for the attributes; what wants a gradient keeps it. None for ``h`` without gradients.
    """
    places = bound_places(model)
    if attributes is None:
        attributes = {name: value.detach() for name, value in h.items()}
    with ExitStack() as undo:
        if is_hyper(model):
            undo.enter_context(replaced(model, {"_current": None}))
        generated = undo.enter_context(the_injector(model).at(h, kept))
        # A network that was hypernetized anew may have other components than those that were bound before.
        known = {name: place for name, place in places.items() if name in h}
        undo.enter_context(bound_at(known, attributes, with_gradient))
        yield generated


def bound_places(model: Any) -> dict[str, Place]:
    """What a plug-in has bound: the attributes of the module by its record, those that the network reads by its own."""
    return {**the_injector(model).bound_places, **places_of(model, getattr(model, BOUND, ()))}


def output_of(model: Any) -> Callable[[Any, int], Any]:
    """A function of (batch, index) that gives what the model predicts.

    A LightningModule's ``predict_step`` where it has one, else the network on as many items of the batch as its
    ``forward`` requires.
    """
    if is_hyper(model) or (hasattr(model, "predict_step") and overrides(model, "predict_step")):
        if is_param_in_hook_signature(model.predict_step, "batch_idx", min_args=2):
            return lambda batch, index: model.predict_step(batch, index)
        return lambda batch, index: model.predict_step(batch)
    lightning = hasattr(model, "predict_step") and not overrides(model, "forward")
    network = the_injector(model).root if lightning else model
    return lambda batch, index: network(*inputs_of(network, batch))
