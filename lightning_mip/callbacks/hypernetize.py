"""Hypernetize: turn a network inside an existing LightningModule into a hypernetwork, with no change to its code."""

from __future__ import annotations

import copy
import functools
import inspect
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_mip.attaching import attach, is_there
from lightning_mip.binding import bound, put, values_of
from lightning_mip.callbacks.sample_h import SampleH, show_in_progress_bar
from lightning_mip.checkpoints import (
    CHILD,
    plain_arguments,
    plain_checkpoint,
    read_checkpoint,
    saved_bind,
    saved_hypernetwork,
)
from lightning_mip.evaluation import GridEvaluation, evaluation_of, grid_of
from lightning_mip.finite import LossWatch
from lightning_mip.hooks import GridHooks, evaluation_hooks, hooks_at, overrides
from lightning_mip.hypernetize import check_known
from lightning_mip.injection import Injector
from lightning_mip.logged import forget_earlier
from lightning_mip.past_the_network import warn_of_theta0_read
from lightning_mip.priors import Prior
from lightning_mip.probe import StepProbe, replaced
from lightning_mip.sharding import check_dense_gradients
from lightning_mip.shown import shown
from lightning_mip.space import HSpace
from lightning_mip.surroundings import check_module, check_no_early_copy, check_order, check_strategy
from lightning_mip.training import ChangeWatch, add_left_out, check_used, match, refusal, warn_of_unused
from lightning_mip.unread import warn_of_unread


class Hypernetize(L.Callback):
    """Makes hyperparameters of an existing LightningModule dials of one training run.

    The network at ``target`` is hypernetized; each training batch draws ``h``, and while its step runs, the attributes
    named by the keys of ``h`` hold the drawn values. Validation and test run the module's own steps at every ``h`` of a
    grid: ``val_acc`` is logged as ``val_acc/hparams.reg_weight=0.1``, ... and, their mean, under its own name. Serves
    modules and Trainers of ``lightning.pytorch`` and of ``pytorch_lightning``.

    To warn of attributes that the step does not read, the first batch of a run is looked at: ``training_step`` runs
    once more, and once again for each attribute. Module, logs and random numbers are put back afterwards; iterators,
    objects of the author's own, files and services that the step uses are not. ``bind=False`` leaves the look out.

    Args:
        target: path of the network in the module (``"net"``, ``"model.encoder"``); ``""`` for the module itself, where
            it has layers of its own; None takes its only child that has parameters.
        h: attribute path in the module -> prior: ``hparams.reg_weight``, ``lam``, ``loss.alpha``, ``net.dropout.p``.
        include: which parameters of the network are generated, as in `lightning_mip.hypernetize`.
        exclude: which are not.
        bind: whether the keys of ``h`` are attributes to set: True, False (a noise draw, that nothing reads), or the
            list of those that are.
        eval: ``grid``; or ``center``, to evaluate once, at the center of the priors, under the plain names.
        eval_grid: values of ``h`` in evaluation: points per component, or a list of mappings.
        predict_h: ``h`` of prediction; None for the center of the priors.
        sampler: how ``h`` is drawn; None for ``SampleH()``.
        hypernet: arguments of `HyperNetwork` as a mapping; the same as ``**arguments``, for configs.
        **arguments: arguments of `HyperNetwork`.

    Example::

        trainer = L.Trainer(callbacks=[Hypernetize("net", h={"hparams.reg_weight": LogUniform(1e-3, 10)})])
        trainer.fit(existing_module, datamodule)
        net = lightning_mip.materialize(existing_module, {"hparams.reg_weight": 0.1})
    """

    def __init__(
        self,
        target: str | None = None,
        h: dict[str, Prior] | None = None,
        *,
        include: str | list[str] = "*",
        exclude: str | list[str] = (),  # type: ignore[assignment]
        bind: bool | list[str] = True,
        eval: Literal["grid", "center"] = "grid",
        eval_grid: int | list[dict[str, Any]] = 5,
        predict_h: dict[str, Any] | None = None,
        sampler: SampleH | None = None,
        hypernet: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        if eval not in ("grid", "center"):
            raise ValueError(f"eval is {shown(eval)}, expected 'grid' or 'center'.")
        if not (sampler is None or isinstance(sampler, SampleH)):
            raise TypeError(f"sampler is {shown(sampler)}, expected a SampleH, such as SampleH(strategy='sobol').")
        if not (hypernet is None or isinstance(hypernet, Mapping)):
            raise TypeError(f"hypernet is {shown(hypernet)}, expected a mapping of arguments of HyperNetwork.")
        own = [
            name for name, each in inspect.signature(Hypernetize).parameters.items() if each.kind != each.VAR_KEYWORD
        ]
        check_known({name: value for name, value in arguments.items() if name != "force"}, "Hypernetize", own)
        check_known(hypernet or {})
        self.target = target
        self.space = h if isinstance(h, HSpace) else HSpace(h or {})
        self.arguments = {"include": include, "exclude": exclude, **(hypernet or {}), **arguments}
        self.bound_paths = self._checked_bind(bind)
        self.grid = None if eval == "center" else grid_of(self.space, eval_grid)
        self.predict_h = self.space.center() if predict_h is None else self.space.tensors(predict_h)
        if self.space.is_batched(self.predict_h):
            raise ValueError(f"predict_h holds several values ({self.space.label(self.predict_h)}), expected one.")
        self.sampler = sampler or SampleH()
        self._path = target or ""
        self._injector: Injector | None = None
        self._undo = ExitStack()
        self._undo_setup = ExitStack()
        # What the module itself holds at the bound paths, while they hold an h.
        self._own: dict[str, Any] = {}
        # Whether a batch has begun, a loss was looked at, a batch has run the network, an epoch was without a gradient.
        self._probed = self._looked = self._used = self._unused = False
        self._watched: set[str] = set()
        self._evaluated: GridEvaluation | None = None
        self._changes = ChangeWatch()
        self._losses = LossWatch()

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Check the surroundings, and attach now or, where the network is made later, once it is there."""
        check_module(pl_module)
        check_strategy(trainer, pl_module)
        check_order(trainer, self)
        made_later = overrides(pl_module, "setup") or overrides(pl_module, "configure_model")
        if not made_later or is_there(pl_module, self.target):
            self._attach(pl_module)
            if stage == "fit":
                check_dense_gradients(trainer, self.injector)
        else:
            check_no_early_copy(trainer)
        if made_later:  # or made anew, as a setup may do at the beginning of each run
            # A partial, not a closure, so that a deepcopy of the module (weight averaging) attaches to the copy.
            made = functools.partial(self._attach_after, pl_module.configure_model, pl_module)
            self._undo_setup.enter_context(replaced(pl_module, {"configure_model": made}))

    def teardown(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Put the module's own methods back; the hypernetwork stays attached, and its training with the callback."""
        self._undo_setup.close()

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """See to it that the hypernetwork is trained, by the optimizer that trains the network."""
        add_left_out(pl_module, self.injector, trainer.optimizers)
        match(self.injector.hypernet, trainer.optimizers)
        self._probed = self._looked = self._used = self._unused = False
        self._changes, self._losses = ChangeWatch(), LossWatch()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Note where network and hypernetwork start, in the first epoch that trains the hypernetwork."""
        self._changes.start(self.injector, trainer.optimizers)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Save the module's own values of what is bound, also in the middle of a step."""
        saved, state = "hyper_parameters", checkpoint["state_dict"]
        if self._own and saved in checkpoint:
            checkpoint[saved] = copy.deepcopy(checkpoint[saved])  # it shares what it nests with the module
        for path, value in self._own.items():
            if path.startswith("hparams.") and saved in checkpoint:
                put(checkpoint[saved], path.removeprefix("hparams."), value)
            if path in state:
                state[path] = value

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """From a run without the plug-in take theta0 alone: progress and other states are of another training."""
        if not any(key.startswith(f"{CHILD}.") for key in checkpoint["state_dict"]):
            checkpoint.update(optimizer_states=[], lr_schedulers=[], callbacks={})
            checkpoint.pop("loops", None)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Draw ``h``, bring its weights into force and set the attributes."""
        h = self.sampler.draw(trainer, self.space)
        self._enter(pl_module, h)
        show_in_progress_bar(trainer, h)
        if not self._probed:
            self._probed = True
            probe = StepProbe(trainer, pl_module, pl_module.get_submodule(self._path), batch, batch_idx)
            warn_of_unread(probe, self.injector, self._path, self.bound_paths)

    def on_before_backward(self, trainer: L.Trainer, pl_module: Any, loss: Tensor) -> None:
        """Look whether the loss is finite, without waiting for it, and at the first one, what it reads."""
        if not self._looked:
            self._looked = True
            warn_of_theta0_read(loss, self.injector, self._path)
        self._losses.see(trainer, loss, self.space, self.injector.h or {})

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Put the attributes back and drop the weights."""
        if outputs and pl_module.automatic_optimization and not self._used:
            check_used(self.injector, self._path)
            self._used = True
        self._leave()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Check that the network was used, and that losses and its weights were finite."""
        self._leave()  # of a batch that on_train_batch_start of the module has ended
        if self._probed and not self._unused:  # an epoch may have no batches
            self._unused = warn_of_unused(self.injector, self._path)
        self._changes.check(self.injector, self._path, trainer.optimizers)
        self._losses.check(trainer, self.space)
        self.injector.check_finite_at(self.injector.h or self.space.center())

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Return to the center of the priors."""
        self.injector.h = self.space.center()

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Begin evaluation on the grid."""
        self._start_evaluation(pl_module, "validation")

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """End it."""
        self._leave()

    def on_test_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Begin evaluation on the grid."""
        self._start_evaluation(pl_module, "test")

    def on_test_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """End it."""
        self._leave()

    def on_predict_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Predict at ``predict_h``."""
        self._enter(pl_module, self.predict_h)

    def on_predict_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Put the attributes back, drop the weights, and return to the center of the priors."""
        self._leave()
        self.injector.h = self.space.center()

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Leave the module as it was."""
        self._undo_setup.close()
        if self._injector is not None:
            self._leave()
            self._injector.h = self.space.center()

    @property
    def injector(self) -> Injector:
        """The injector of the network, once it is attached."""
        if self._injector is None:
            raise MisconfigurationException(
                f"Hypernetize(target={self.target!r}) has attached no hypernetwork yet; begin a run with it first: "
                "Trainer(callbacks=[...]).fit(module), validate or test."
            )
        return self._injector

    @property
    def state_key(self) -> str:
        """Tells two of them apart, so that `setup` can say what is wrong."""
        return f"Hypernetize{{target: {self.target}}}"

    def state_dict(self) -> dict[str, Any]:
        """What was attached, in plain data."""
        return {
            "target": self._path,
            "h": self.space.config(),
            "bind": self.bound_paths,
            **plain_arguments(self.arguments),
        }

    def __getstate__(self) -> dict[str, Any]:
        """A copy has nothing to undo."""
        return {**self.__dict__, "_undo": ExitStack(), "_undo_setup": ExitStack(), "_own": {}, "_evaluated": None}

    @staticmethod
    def export(source: Any, h: Mapping[str, Any], path: str | Path) -> None:
        """Write a checkpoint for one ``h`` that the original, unmodified LightningModule class loads.

        Args:
            source: a Trainer with this callback, after a run, or the path of a checkpoint that it has written.
            h: attribute path -> value; written into the saved hyperparameters where they have it.
            path: the file to write, ``*.ckpt``.

        Raises:
            TypeError: ``source`` is neither.
            ValueError: the Trainer ran without this callback, or ``path`` has another suffix.
        """
        if Path(path).suffix.lower() != ".ckpt":
            raise ValueError(
                f"path is {str(path)!r}, expected a checkpoint, *.ckpt; mip.export(module, h, path) writes the network "
                "alone, as .pt, .pt2 or .onnx."
            )
        if not isinstance(source, (str, Path)) and not hasattr(source, "callbacks"):
            raise TypeError(
                f"source is a {type(source).__name__}, expected the Trainer that ran with this callback, or the path "
                "of a checkpoint that it has written."
            )
        if isinstance(source, (str, Path)):
            checkpoint = read_checkpoint(source)
            plain = plain_checkpoint(checkpoint, *saved_hypernetwork(checkpoint), h, saved_bind(checkpoint))
            torch.save(plain, path)
            return
        plugin = plugin_of(source)
        if plugin is None:
            raise ValueError("The Trainer has no Hypernetize among its callbacks; give the one that ran with it.")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "now.ckpt"
            source.save_checkpoint(file, weights_only=True)
            if source.is_global_zero:
                # Of this process, a line above, so it may hold hyperparameters of any type.
                checkpoint = torch.load(file, map_location="cpu", weights_only=False)
                hypernet = copy.deepcopy(plugin.injector.hypernet).cpu().eval()
                plain = plain_checkpoint(checkpoint, hypernet, plugin._path, h, plugin.bound_paths)
                torch.save(plain, path)

    def _checked_bind(self, bind: bool | list[str]) -> list[str]:
        if isinstance(bind, bool):
            return list(self.space) if bind else []
        if isinstance(bind, str) or not isinstance(bind, Iterable):
            raise TypeError(f"bind is {shown(bind)}, expected True, False or a list of components of h.")
        unknown = [name for name in bind if name not in self.space]
        if unknown:
            raise ValueError(f"bind names {unknown[0]!r}, which is no component of h: {', '.join(self.space)}.")
        return list(bind)

    def _attach_after(self, configure_model: Callable[[], None], pl_module: Any) -> None:
        configure_model()
        self._attach(pl_module)

    def _attach(self, pl_module: Any) -> None:
        self._path, self._injector = attach(pl_module, self.target, self.space, self.arguments, self.bound_paths)
        self._injector.outside = None
        self._undo_setup.callback(setattr, self._injector, "outside", refusal(pl_module, Hypernetize))
        self._injector.h = self.space.center()

    @contextmanager
    def _attributes_at(self, pl_module: Any, h: Mapping[str, Tensor]) -> Iterator[None]:
        outer = self._own
        self._own = outer or values_of(pl_module, self.bound_paths)
        try:
            with bound(pl_module, {name: h[name] for name in self.bound_paths}):
                yield
        finally:
            self._own = outer

    def _enter(self, pl_module: Any, h: Mapping[str, Tensor]) -> None:
        self._undo.close()
        self.injector.use(h)
        self._undo.enter_context(self._attributes_at(pl_module, h))

    def _leave(self) -> None:
        self.injector.clear()
        self._undo.close()

    def _start_evaluation(self, pl_module: Any, stage: str) -> None:
        self._leave()
        forget_earlier(pl_module)
        hooks = evaluation_hooks(pl_module, stage)
        if self.grid is None:
            at = functools.partial(self._at, pl_module, self.space.center())
            self._undo.enter_context(replaced(pl_module, hooks_at(hooks, at)))
            return
        enter = functools.partial(self._attributes_at, pl_module)
        self._evaluated = evaluation_of(self._evaluated, pl_module, self.injector, self.grid, enter)
        on_grid = GridHooks(self._evaluated, watch=stage not in self._watched)
        self._watched.add(stage)
        self._undo.enter_context(replaced(pl_module, on_grid.wrap(hooks)))
        self._undo.callback(self._evaluated.close)

    @contextmanager
    def _at(self, pl_module: Any, h: Mapping[str, Tensor]) -> Iterator[None]:
        with self.injector.at(h), self._attributes_at(pl_module, h):
            yield


def plugin_of(trainer: Any) -> Hypernetize | None:
    """The plug-in among the callbacks of a Trainer; None without one, or without a Trainer."""
    return next((each for each in getattr(trainer, "callbacks", ()) if isinstance(each, Hypernetize)), None)
