"""HyperLightningModule: the base class of a task whose primary network is hypernetized."""

from __future__ import annotations

import copy
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Literal, Self

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from lightning.pytorch.utilities.model_helpers import _restricted_classmethod
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from lightning_mip.batches import batch_size, inputs_of
from lightning_mip.callbacks.sample_h import SampleH
from lightning_mip.ensemble import Ensemble, ensemble
from lightning_mip.evaluation import GridEvaluation, evaluation_of, grid_of
from lightning_mip.factories import called, check_makes
from lightning_mip.head_choice import head_config
from lightning_mip.hypernetize import hypernetize
from lightning_mip.hypernetwork import HyperNetwork
from lightning_mip.injection import evaluated, the_injector
from lightning_mip.logged import forget_earlier
from lightning_mip.only_imported import only_imported
from lightning_mip.own_arguments import arguments_of, is_plain
from lightning_mip.per_sample import refuse_alone, run_per_sample
from lightning_mip.positive import check_whole
from lightning_mip.priors import Prior
from lightning_mip.shown import shown
from lightning_mip.space import HSpace
from lightning_mip.steps import (
    asking_for_given_again,
    at_predict_h,
    check_names,
    check_own_steps,
    noting_given_again,
    with_draws,
    with_sampler,
    wrap_steps,
)
from lightning_mip.training import match


class HyperLightningModule(L.LightningModule):
    """A LightningModule around a hypernetized primary network: subclass it and write the steps once, for one ``h``.

    In training, `SampleH` draws ``h`` for each batch. In validation and test, each batch is evaluated at every ``h`` of
    a grid: ``self.log("val_loss", ...)`` gives ``val_loss/lam=0``, ``val_loss/lam=0.25``, ... and ``val_loss``, the
    mean over the grid. In a step, ``self(x)`` is the primary with the weights of the current ``h``, and ``self.h`` is
    that ``h``. Works with the ``lightning.pytorch`` namespace.

    Args:
        primary: the network to hypernetize; its parameters become theta0.
        h: component name -> prior.
        hypernet: arguments of `HyperNetwork` as a mapping, something called with (space, shapes) that makes one, or one
            made before.
        include: which parameters are generated, as in `hypernetize`.
        exclude: which are not.
        optimizer: makes the optimizer from all parameters; None for Adam with a learning rate of 1e-3, on CPUs in its
            fused form, which takes a fraction of the time of torch's default there.
        lr_scheduler: makes the scheduler from the optimizer.
        eval_grid: values of ``h`` in validation and test: points per component, or a list of mappings.
        predict_h: ``h`` of ``predict_step``; None for the center of the priors, ``"grid"`` for a dict of the outputs
            at all values of ``eval_grid``.
        draws_per_batch: K > 1 splits each training batch in K parts, each with its own ``h``; the loss is the mean over
            the samples. Less variance of the gradient from the same number of samples. Of the dicts that
            ``training_step`` returns, tensors with a value per sample are joined; other entries are the last part's.
        per_sample: give each training sample its own ``h``, by ``torch.vmap``; ``self.h["lam"]`` has shape (B,).
        h_from_batch: take ``h`` from the batch instead of drawing it: a function of the batch that returns a mapping,
            or the key of the batch that holds one. Evaluation then runs once per batch, at its own ``h``.

    Checkpoints hold plain data only. A module configured by LightningCLI is rebuilt by ``load_from_checkpoint(path)``
    where the modules of the classes in its config are imported; one made in Python takes again what cannot be plain
    data: ``load_from_checkpoint(path, primary=UNet())``.
    """

    def __init__(
        self,
        primary: nn.Module,
        h: dict[str, Prior],
        *,
        hypernet: Callable[[HSpace, dict[str, torch.Size]], HyperNetwork] | dict[str, Any] | None = None,
        include: str | list[str] = "*",
        exclude: str | list[str] = (),  # type: ignore[assignment]
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        eval_grid: int | list[dict[str, Any]] = 5,
        predict_h: dict[str, Any] | Literal["grid"] | None = None,
        draws_per_batch: int = 1,
        per_sample: bool = False,
        h_from_batch: str | Callable[[Any], Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        check_whole("draws_per_batch", draws_per_batch)
        if draws_per_batch < 1 or (draws_per_batch > 1 and (per_sample or h_from_batch is not None)):
            raise ValueError(
                f"draws_per_batch is {draws_per_batch}, expected at least 1, and 1 with per_sample or h_from_batch."
            )
        if not isinstance(per_sample, bool):
            raise TypeError(f"per_sample is {shown(per_sample)}, expected True or False.")
        if not (h_from_batch is None or isinstance(h_from_batch, (str, int)) or callable(h_from_batch)):
            raise TypeError(
                f"h_from_batch is {shown(h_from_batch)}, expected a key of the batch, or a function of it that returns "
                "a mapping."
            )
        check_makes("optimizer", optimizer, "lambda parameters: torch.optim.Adam(parameters, 1e-3)")
        check_makes(
            "lr_scheduler", lr_scheduler, "lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)"
        )
        space = h if isinstance(h, HSpace) else HSpace(h)
        self.save_hyperparameters(frame=inspect.currentframe())
        self.primary = primary
        self.hypernet = _attach(primary, space, hypernet, include, exclude)
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.eval_grid, self.predict_h = eval_grid, predict_h
        self.draws_per_batch, self.per_sample, self.h_from_batch = draws_per_batch, per_sample, h_from_batch
        self._injector = the_injector(primary)
        # The value in force where nothing draws one: model summary, a call by hand.
        self._injector.h = space.center()
        self._sampler = SampleH()
        self._draws: list[dict[str, Tensor]] = []
        self._draw_losses: list[tuple[Tensor, Mapping[str, Tensor]]] = []
        self._current: dict[str, Tensor] | None = None
        self._evaluation: GridEvaluation | None = None
        self._evaluated: GridEvaluation | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Wrap the steps that the subclass or a mix-in of it writes, so that each runs at the right ``h``."""
        super().__init_subclass__(**kwargs)
        check_names(cls, HyperLightningModule)
        wrap_steps(cls, HyperLightningModule)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse another hypernetwork, which the primary would not run with, and another primary, which has none."""
        injector = self.__dict__.get("_injector") if name in ("hypernet", "primary") else None
        if injector is None:
            super().__setattr__(name, value)
            return
        if name == "primary" and not (isinstance(value, nn.Module) and injector.root in value.modules()):
            raise AttributeError(
                f"primary cannot be replaced by a {type(value).__name__}: {type(self).__name__} has hypernetized the "
                "one that it was made with. Pass another when you make the module, primary=..., or load weights into "
                "this one: model.primary.load_state_dict(...)."
            )
        if name == "hypernet" and value is not injector.hypernet:
            raise AttributeError(
                f"hypernet cannot be replaced by a {type(value).__name__}: the primary runs with the hypernetwork that "
                f"{type(self).__name__} was made with. Pass another when you make the module, hypernet=..., or load "
                "weights into this one: model.hypernet.load_state_dict(...)."
            )
        super().__setattr__(name, value)

    @property
    def space(self) -> HSpace:
        """The priors of ``h``."""
        return self.hypernet.space

    @property
    def eval_grid(self) -> int | list[dict[str, Any]]:
        """Values of ``h`` in validation and test."""
        return self._eval_grid

    @eval_grid.setter
    def eval_grid(self, given: int | list[dict[str, Any]]) -> None:
        self._grid = grid_of(self.space, given)
        self._eval_grid = given

    @property
    def predict_h(self) -> dict[str, Any] | Literal["grid"] | None:
        """The ``h`` of ``predict_step``."""
        return self._predict_h

    @predict_h.setter
    def predict_h(self, given: dict[str, Any] | Literal["grid"] | None) -> None:
        word = isinstance(given, str)
        if given is not None and not (given == "grid" if word else isinstance(given, Mapping)):
            error = ValueError if word else TypeError
            names = ", ".join(self.space)
            raise error(f"predict_h is {shown(given)}, expected 'grid', None, or a mapping with {names}.")
        if isinstance(given, Mapping):
            self.space.tensors(given)
        self._predict_h = given

    @property
    def h(self) -> dict[str, Tensor]:
        """A copy of the current ``h`` on the module's device: name -> 0-dim tensor, or of shape (B,) per sample."""
        current = self._current if self._current is not None else self._injector.h
        # Copies, as a step may write to them.
        moved = {name: value.to(self.device, non_blocking=True, copy=True) for name, value in (current or {}).items()}
        return _Named(self.space, moved)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the primary network with the weights of the current ``h``."""
        if self._current is None:
            self._check_not_a_child()
            return self.primary(*args, **kwargs)
        # Not self.h: its values are on the device already, and checking them would wait for it.
        return run_per_sample(self._injector, self._current, args, kwargs)

    @at_predict_h
    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Run the primary on the batch; of a tuple or list, on as many items as its ``forward`` requires."""
        return self(*inputs_of(self.primary, batch))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimize theta0 and the hypernetwork together, and match the hypernetwork to the optimizer."""
        optimizer: torch.optim.Optimizer = called(
            "optimizer", self.optimizer or _adam, [p for p in self.parameters() if p.requires_grad]
        )
        match(self.hypernet, [optimizer])
        scheduler = None if self.lr_scheduler is None else called("lr_scheduler", self.lr_scheduler, optimizer)
        if scheduler is None:
            return optimizer
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            monitor = getattr(scheduler, "monitor", "val_loss")
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": monitor}}
        return [optimizer], [scheduler]

    @with_sampler
    def configure_callbacks(self) -> list[L.Callback]:
        """Add `SampleH` unless the user gave one."""
        return []

    @with_draws
    def on_train_start(self) -> None:
        """See to it that a search for a learning rate or a batch size draws ``h``."""

    def save_hyperparameters(
        self,
        *args: Any,
        ignore: Sequence[str] | str | None = None,
        frame: FrameType | None = None,
        logger: bool = True,
    ) -> None:
        """Save those arguments of the module's own class that are plain data, so that any ``torch.load`` takes them.

        Lightning's method saves objects too, and adds the arguments of the base classes; here it still serves a choice
        of names, and LightningCLI, whose config is plain and complete.
        """
        frame = frame or sys._getframe(1)
        if args or _given_hyperparameters.get() is not None:
            super().save_hyperparameters(*args, ignore=ignore, frame=frame, logger=logger)
            return
        super().save_hyperparameters({}, logger=logger)
        given = arguments_of(self, frame)
        if isinstance(given.get("h"), Mapping):
            given["h"] = HSpace(given["h"]).config()
        if isinstance(given.get("hypernet"), Mapping) and "head" in given["hypernet"]:
            given["hypernet"] = {**given["hypernet"], "head": head_config(given["hypernet"]["head"])}
        self._set_hparams({name: value for name, value in given.items() if is_plain(value)})
        self.remove_ignored_hparams([ignore] if isinstance(ignore, str) else list(ignore or ()))
        self._hparams_initial = copy.deepcopy(self._hparams)

    @_restricted_classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Self:
        """Rebuild a module from a checkpoint, as Lightning's method does, and import nothing that only it names."""
        with only_imported():
            return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)

    @noting_given_again
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note what a checkpoint cannot hold and evaluation needs."""

    @asking_for_given_again
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Ask for it where it is not given again."""

    def __getstate__(self) -> dict[str, Any]:
        """Leave the weights of the last call behind: they are no part of a copy."""
        self._injector.clear()
        return {**super().__getstate__(), "_evaluation": None, "_evaluated": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin outside of any run."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.release_h()

    @contextmanager
    def at(self, h: Mapping[str, Any] | None = None, /, **components: Any) -> Iterator[None]:
        """Use one ``h`` for ``self(x)`` and ``self.h`` inside the block."""
        outer, self._current = self._current, None
        try:
            with self._injector.at(self.space.given(h, components)):
                yield
        finally:
            self._current = outer

    def predict_ensemble(self, x: Any, n: int = 32, *, class_dim: int | None = None, seed: int = 0) -> Ensemble:
        """Predict with the networks of ``n`` draws of ``h``, in evaluation mode and without gradients.

        Args:
            x: input of ``self(x)``; a tuple holds several.
            n: number of draws.
            class_dim: dimension of the classes of an output that is logits; their softmax is what is averaged.
            seed: the draws are a function of it.

        Returns:
            An `Ensemble`: ``mean``, ``variance``, ``draws``, and with ``class_dim`` also ``mutual_information``.
        """
        check_whole("n", n)
        if n < 1:
            raise ValueError(f"n is {n}, expected at least 1: the prediction is a mean over n draws of h.")
        outputs = []
        with evaluated(self), torch.no_grad():
            for step in range(n):
                with self.at(self.space.sample(seed=seed, step=step)):
                    outputs.append(self(*x) if isinstance(x, tuple) else self(x))
        return ensemble(outputs, class_dim)

    def draws_of(self, batch: Any) -> int | None:
        """How many values of ``h`` a training batch takes; None for one, without batch dimension."""
        if self.per_sample:
            size = batch_size(batch)
            if size is None:
                raise ValueError(
                    "per_sample=True needs a batch with samples, but no tensor of this batch "
                    f"({type(batch).__name__}) has a batch dimension."
                )
            return size
        return self.draws_per_batch if self.draws_per_batch > 1 else None

    def _wrap_steps(self) -> None:
        """Wrap steps that were set since the class was written; called by `SampleH`."""
        wrap_steps(type(self), HyperLightningModule)
        check_own_steps(self)

    def start_batch(self, h: Mapping[str, Tensor]) -> None:
        """Bring a training batch's ``h`` into force; called by `SampleH`."""
        self.release_h()
        if not self.space.is_batched(h):
            self._injector.use(h)
        elif self.draws_per_batch > 1:
            self._draws = [{name: value[k] for name, value in h.items()} for k in range(self.draws_per_batch)]
        else:
            self._current = self._checked_per_sample(h)
            # The network itself cannot run at several h at once; only `self(x)` can.
            self._injector.h, self._injector.outside = None, refuse_alone

    def end_batch(self) -> None:
        """Drop the generated weights of a training batch."""
        self._injector.clear()

    def release_h(self) -> None:
        """Return to the center of the priors."""
        self._injector.clear()
        self._injector.h, self._injector.outside = self.space.center(), None
        self._current, self._draws, self._draw_losses = None, [], []

    def _losses_by_h(self, loss: Tensor) -> list[tuple[Tensor, Mapping[str, Tensor]]]:
        """The losses that ``loss`` is the mean of, each with its ``h``: one, or one per draw; called by `SampleH`."""
        inside = self._injector.active or not self._draw_losses
        return [(loss, self.h)] if inside else self._draw_losses

    def check_finite(self) -> None:
        """Raise FloatingPointError if the weights at the current ``h`` are not finite, naming the tensor."""
        self._injector.check_finite_at(self._current or self._injector.h or self.space.center())

    def check_used(self) -> None:
        """Warn if no gradient has reached the generated weights."""
        if not (self.per_sample or self._injector.used) and self._injector.leaves():
            warnings.warn(
                f"No gradient has reached the generated weights of {type(self).__name__}: training_step does not run "
                "self(x) or self.primary, or its loss does not depend on them.",
                stacklevel=2,
            )

    def start_evaluation(self) -> None:
        """Begin a validation or test run on the grid; called by `SampleH`."""
        self.release_h()
        forget_earlier(self)
        if self.h_from_batch is None:
            self._evaluation = self._evaluated = evaluation_of(self._evaluated, self, self._injector, self._grid)

    def end_evaluation(self) -> None:
        """End it."""
        if self._evaluation is not None:
            self._evaluation.close()
        self._evaluation = None

    def batch_h(self, batch: Any) -> dict[str, Tensor]:
        """Take ``h`` from a batch, as ``h_from_batch`` says."""
        source = self.h_from_batch
        found = source(batch) if callable(source) else _item(batch, source)
        if not isinstance(found, Mapping):
            found = dict.fromkeys(self.space, found) if len(self.space) == 1 else found
        if not isinstance(found, Mapping):
            raise TypeError(
                f"h_from_batch gave {type(found).__name__}, expected a mapping with {', '.join(self.space)}."
            )
        return self.space.tensors(found)

    @contextmanager
    def _batch_at(self, h: Mapping[str, Tensor]) -> Iterator[None]:
        """Bring a batch's ``h`` into force, one value or one per sample."""
        if not self.space.is_batched(h):
            with self._injector.at(h):
                yield
            return
        injector = self._injector
        outer = self._current, injector.h, injector.outside
        self._current, injector.h, injector.outside = self._checked_per_sample(h), None, refuse_alone
        try:
            yield
        finally:
            self._current, injector.h, injector.outside = outer

    def _check_not_a_child(self) -> None:
        trained = self._trainer is not None and self._trainer.training and self._trainer.lightning_module
        if trained and trained is not self and not self._injector.active:
            raise RuntimeError(
                f"{type(self).__name__} is a child of {type(trained).__name__}, where nothing draws its h; use "
                "`with child.at(...):`, or hypernetize the network in the outer module."
            )

    def _checked_per_sample(self, h: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not self.per_sample:
            raise ValueError(
                f"h has one value per sample ({', '.join(f'{k}: {tuple(v.shape)}' for k, v in h.items())}); set "
                "per_sample=True, or give one value per batch."
            )
        return dict(h)


class _Named(dict[str, Tensor]):
    """A mapping that says what its components are when asked for another."""

    def __init__(self, space: HSpace, values: Mapping[str, Tensor]) -> None:
        super().__init__(values)
        self.space = space

    def __missing__(self, name: str) -> Tensor:
        raise KeyError(self.space.unknown(name))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"h has no attribute {name!r}; its components are items: h[{name!r}].")


def _attach(
    primary: nn.Module, space: HSpace, hypernet: Any, include: str | list[str], exclude: str | list[str]
) -> HyperNetwork:
    arguments: dict[str, Any] = {"include": include, "exclude": exclude}
    if isinstance(hypernet, Mapping):
        arguments |= dict(hypernet)
    else:
        arguments["hypernet"] = hypernet
    return hypernetize(primary, space, **arguments)


def _adam(parameters: list[nn.Parameter]) -> torch.optim.Adam:
    # Elsewhere torch chooses well by itself, and the fused form does not go with fp16 and gradient clipping.
    on_cpu = all(parameter.device.type == "cpu" for parameter in parameters)
    return torch.optim.Adam(parameters, fused=True if on_cpu else None)


def _item(batch: Any, key: Any) -> Any:
    try:
        return batch[key]
    except (KeyError, TypeError, IndexError) as error:
        found = ", ".join(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
        raise ValueError(f"h_from_batch is {key!r}, but the batch has no such key: it is {found}.") from error
