"""Hypernetize: turn a network inside an existing LightningModule into a hypernetwork, with no change to its code."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lightning_mip.binding import bound, check_path
from lightning_mip.callbacks.sample_h import SampleH, show_in_progress_bar
from lightning_mip.evaluation import GridEvaluation, grid_of
from lightning_mip.export import checkpoint_target, plain_checkpoint, read_checkpoint
from lightning_mip.hypernetize import hypernetize
from lightning_mip.injection import Injector, injectors
from lightning_mip.priors import Prior
from lightning_mip.probe import StepProbe, same
from lightning_mip.space import HSpace

_CHILD = "hypernet"
_EVALUATED = {
    "validate": ("validation_step", "on_validation_epoch_start", "on_validation_epoch_end"),
    "test": ("test_step", "on_test_epoch_start", "on_test_epoch_end"),
}


class Hypernetize(L.Callback):
    """Makes hyperparameters of an existing LightningModule dials of one training run.

    The network at ``target`` is hypernetized; each training batch draws ``h``, and while its step runs, the attributes
    named by the keys of ``h`` hold the drawn values. Validation and test run the module's own steps at every ``h`` of a
    grid: ``val_acc`` is logged as ``val_acc/hparams.reg_weight=0.1``, ... and, their mean, under its own name. Serves
    modules and Trainers of ``lightning.pytorch`` and of ``pytorch_lightning``.

    Args:
        target: path of the network in the module (``"net"``, ``"model.encoder"``); None takes its only child that has
            parameters.
        h: attribute path in the module -> prior: ``hparams.reg_weight``, ``lam``, ``loss.alpha``, ``net.dropout.p``.
        include: which parameters of the network are generated, as in `lightning_mip.hypernetize`.
        exclude: which are not.
        bind: whether the keys of ``h`` are attributes to set: True, False (a noise draw, that nothing reads), or the
            list of those that are.
        eval: ``grid``, or ``center`` to evaluate once, at the center of the priors, under the plain names.
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
            raise ValueError(f"eval is {eval!r}, expected 'grid' or 'center'.")
        self.target = target
        self.space = h if isinstance(h, HSpace) else HSpace(h or {})
        self.arguments = {"include": include, "exclude": exclude, **(hypernet or {}), **arguments}
        self.bound_paths = self._checked_bind(bind)
        self.eval = eval
        self.grid = [self.space.center()] if eval == "center" else grid_of(self.space, eval_grid)
        self.predict_h = self.space.center() if predict_h is None else self.space.tensors(predict_h)
        self.sampler = sampler or SampleH()
        self._path = target
        self._injector: Injector | None = None
        self._evaluation: GridEvaluation | None = None
        self._binding: Any = None
        self._checked = False

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Check the surroundings, and attach now or, where the network is made later, once it is there."""
        _check_strategy(trainer)
        _check_order(trainer, self)
        if self._can_attach(pl_module):
            self._attach(pl_module)
        else:
            # A partial, not a closure, so that a deepcopy of the module (weight averaging) attaches to the copy.
            original = pl_module.configure_model
            pl_module.__dict__["configure_model"] = functools.partial(self._attach_after, original, pl_module)

    def teardown(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Leave the module's own methods in place; the hypernetwork stays attached."""
        pl_module.__dict__.pop("configure_model", None)

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """See to it that the hypernetwork is trained, by the optimizer that trains the network."""
        missing = [p for p in self.injector.hypernet.parameters() if id(p) not in _optimized(trainer)]
        if missing:
            theta0 = {id(p) for p in self.injector.root.parameters()}
            groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
            holding = [group for group in groups if any(id(p) in theta0 for p in group["params"])]
            (holding or groups)[0]["params"].extend(missing)
        self._checked = False

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """From a run without the plug-in take theta0 alone: optimizer and progress are of another training."""
        if any(key.startswith(f"{_CHILD}.") for key in checkpoint["state_dict"]):
            return
        checkpoint["optimizer_states"], checkpoint["lr_schedulers"] = [], []
        checkpoint.pop("loops", None)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Draw ``h``, bring its weights into force and set the attributes."""
        h = self.sampler.draw(trainer, self.space)
        self._enter(pl_module, h)
        show_in_progress_bar(trainer, pl_module, h)
        if not self._checked:
            self._warn_of_unread(trainer, pl_module, batch, batch_idx)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Put the attributes back and drop the weights."""
        if not self._checked and outputs is not None and not self.injector.used:
            raise MisconfigurationException(
                f"The first training step did not use the network {self._path!r}: no gradient reached its generated "
                "weights. Name the network that training_step runs as target."
            )
        self._checked = True
        self._leave()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Check, once per epoch, that generated weights are finite."""
        self.injector.check_finite_at(self.injector.h or self.space.center())

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Return to the center of the priors."""
        self.injector.h = self.space.center()

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Begin evaluation on the grid."""
        self._start_evaluation(pl_module, "validate")

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """End it."""
        self._end_evaluation(pl_module)

    def on_test_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Begin evaluation on the grid."""
        self._start_evaluation(pl_module, "test")

    def on_test_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """End it."""
        self._end_evaluation(pl_module)

    def on_predict_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Predict at ``predict_h``."""
        self._enter(pl_module, self.predict_h)

    def on_predict_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Put the attributes back and drop the weights."""
        self._leave()

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Leave the module as it was."""
        if self._injector is not None:
            self._end_evaluation(pl_module)
            self._leave()

    @property
    def injector(self) -> Injector:
        """The injector of the network, once it is attached."""
        if self._injector is None:
            raise MisconfigurationException(
                f"Hypernetize found no network at target={self.target!r} after configure_model; name one that exists "
                "by then."
            )
        return self._injector

    def state_dict(self) -> dict[str, Any]:
        """What was attached, in plain data."""
        return {"target": self._path, "h": self.space.config(), "bind": self.bound_paths}

    def export(self, source: Any, h: Mapping[str, Any], path: str | Path) -> None:
        """Write a checkpoint for one ``h`` that the original, unmodified LightningModule class loads.

        Args:
            source: a Trainer after ``fit``, or the path of a checkpoint of a run with this plug-in.
            h: attribute path -> value; written into the saved hyperparameters where they have it.
            path: the file to write.
        """
        checkpoint = read_checkpoint(source)
        given = self.space.tensors(h)
        prefix = self._path or checkpoint_target(checkpoint)
        torch.save(plain_checkpoint(checkpoint, given, prefix, _CHILD, self.arguments), path)

    def _checked_bind(self, bind: bool | list[str]) -> list[str]:
        if isinstance(bind, bool):
            return list(self.space) if bind else []
        unknown = [name for name in bind if name not in self.space]
        if unknown:
            raise ValueError(f"bind names {unknown[0]!r}, which is no component of h: {', '.join(self.space)}.")
        return list(bind)

    def _can_attach(self, pl_module: Any) -> bool:
        """Whether the network is there before the module's own ``setup`` and ``configure_model`` have run."""
        if self.target is None:
            return not (_overrides(pl_module, "setup") or _overrides(pl_module, "configure_model"))
        try:
            pl_module.get_submodule(self.target)
        except AttributeError:
            return False
        return True

    def _attach_after(self, configure_model: Callable[[], None], pl_module: Any) -> None:
        configure_model()
        self._attach(pl_module)

    def _attach(self, pl_module: Any) -> None:
        """Attach once; a module that has been attached before (fit again, test after fit) stays as it is."""
        self._path, network = _find(pl_module, self.target)
        for name in self.bound_paths:
            check_path(pl_module, name)
        found = [injector for injector in injectors(pl_module) if injector.root is network]
        if found:
            self._adopt(found[0])
            return
        if hasattr(pl_module, _CHILD):
            raise MisconfigurationException(
                f"{type(pl_module).__name__} has an attribute {_CHILD!r} of its own, where Hypernetize keeps the "
                "hypernetwork; rename it."
            )
        setattr(pl_module, _CHILD, hypernetize(network, self.space, **self.arguments))
        self._injector = injectors(network)[0]
        self._injector.h = self.space.center()
        pl_module.register_load_state_dict_pre_hook(_start_from_plain)

    def _adopt(self, injector: Injector) -> None:
        if injector.hypernet.space.config() != self.space.config():
            raise MisconfigurationException(
                f"The network {self._path!r} is hypernetized for h = {injector.hypernet.space} already, this callback "
                f"has h = {self.space}; use the same h, or mip.dehypernetize it first."
            )
        self._injector = injector

    def _enter(self, pl_module: Any, h: Mapping[str, Tensor]) -> None:
        self._leave()
        self.injector.use(h)
        self._binding = bound(pl_module, {name: h[name] for name in self.bound_paths})
        self._binding.__enter__()

    def _leave(self) -> None:
        self.injector.clear()
        if self._binding is not None:
            binding, self._binding = self._binding, None
            binding.__exit__(None, None, None)

    def _start_evaluation(self, pl_module: Any, stage: str) -> None:
        self._leave()

        def enter(h: Mapping[str, Tensor]) -> Any:
            return bound(pl_module, {name: h[name] for name in self.bound_paths})

        self._evaluation = GridEvaluation(pl_module, self.injector, self.grid, enter, plain=self.eval == "center")
        for name in _EVALUATED[stage]:
            pl_module.__dict__[name] = _on_grid(self._evaluation, getattr(pl_module, name))

    def _end_evaluation(self, pl_module: Any) -> None:
        for name in (name for names in _EVALUATED.values() for name in names):
            pl_module.__dict__.pop(name, None)
        if self._evaluation is not None:
            self._evaluation.close()
        self._evaluation = None

    def _warn_of_unread(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Warn of attributes that the step does not read, such as one that was used up when a layer was made."""
        if not self.bound_paths or not pl_module.automatic_optimization:
            return
        h = dict(self.injector.h or {})
        probe = StepProbe(pl_module, self.injector.root, batch, batch_idx)
        before = probe.run()
        for name in self.bound_paths:
            other = next((g[name] for g in self.space.grid(2) if not torch.equal(g[name], h[name])), None)
            if other is not None:
                with bound(pl_module, {name: other}):
                    changed = not same(before, probe.run())
                if not changed:
                    rank_zero_warn(
                        f"Changing {name} changes neither the loss nor the output of {self._path!r} at equal weights: "
                        "the step does not read it. If a layer was made from it, bind that layer's attribute instead "
                        f"(such as '{self._path}.dropout.p'); bind=False if nothing is to read it."
                    )


def _on_grid(evaluation: GridEvaluation, hook: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(hook)
    def run(*args: Any, **kwargs: Any) -> Any:
        if evaluation.active:
            return hook(*args, **kwargs)
        return evaluation.run(functools.partial(hook, *args, **kwargs))

    return run


def _find(pl_module: Any, target: str | None) -> tuple[str, nn.Module]:
    if target is None:
        children = {
            name: m
            for name, m in pl_module.named_children()
            if name != _CHILD and next(m.parameters(), None) is not None
        }
        if len(children) != 1:
            listed = ", ".join(children) or "none"
            raise MisconfigurationException(
                f"target is None, but {type(pl_module).__name__} has {len(children)} children with parameters: "
                f"{listed}; name one as target."
            )
        return next(iter(children.items()))
    try:
        module: nn.Module = pl_module.get_submodule(target)
    except AttributeError as error:
        listed = ", ".join(name for name, _ in pl_module.named_children()) or "none"
        raise MisconfigurationException(
            f"target is {target!r}, but {type(pl_module).__name__} has no such module; its children are {listed}."
        ) from error
    return target, getattr(module, "_orig_mod", module)


def _overrides(pl_module: Any, name: str) -> bool:
    """Whether the module's class writes this hook itself; by name, since the module may be of either namespace."""
    return not getattr(type(pl_module), name).__module__.startswith(("lightning.", "pytorch_lightning."))


def _optimized(trainer: L.Trainer) -> set[int]:
    return {id(p) for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]}


def _start_from_plain(module: nn.Module, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
    """Let a checkpoint of a run without the plug-in load: theta0 starts there, the hypernetwork is new."""
    if any(key.startswith(f"{prefix}{_CHILD}.") for key in state_dict):
        return
    hypernet = getattr(module, _CHILD)
    state_dict.update({f"{prefix}{_CHILD}.{key}": value for key, value in hypernet.state_dict().items()})
    rank_zero_info("The checkpoint is of a run without Hypernetize: theta0 starts from it, the hypernetwork is new.")


def _check_strategy(trainer: L.Trainer) -> None:
    launcher = type(trainer.strategy.launcher).__name__
    if launcher == "_MultiProcessingLauncher":
        raise MisconfigurationException(
            "Hypernetize attaches in the training processes, and strategies that spawn or fork (ddp_spawn, ddp_fork, "
            "ddp_notebook) bring back only what the module had before: the hypernetwork would be lost. Use "
            "strategy='ddp', or call mip.hypernetize before fit."
        )


def _check_order(trainer: Any, plugin: Hypernetize) -> None:
    names = [type(callback).__name__ for callback in trainer.callbacks]
    before = [name for name in names[: trainer.callbacks.index(plugin)] if "WeightAveraging" in name]
    if before:
        raise MisconfigurationException(
            f"{before[0]} stands before Hypernetize in callbacks, so it would average the module without its "
            "hypernetwork; put Hypernetize first."
        )
