"""SampleH: draw ``h`` for each training batch."""

from __future__ import annotations

from typing import Any, Literal

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_mip.draws import STRATEGIES
from lightning_mip.finite import LossWatch
from lightning_mip.injection import Injector, injectors, the_injector
from lightning_mip.is_hyper import is_hyper
from lightning_mip.past_the_network import warn_of_theta0_read
from lightning_mip.positive import check_whole
from lightning_mip.sharding import check_dense_gradients, check_whole_parameters
from lightning_mip.shown import shown
from lightning_mip.space import HSpace
from lightning_mip.ties import tie_across, tie_text
from lightning_mip.training import left_out, match


def injector_of(pl_module: Any, callback: L.Callback) -> Injector:
    """The injector of the network whose ``h`` a run draws: a HyperLightningModule's own, or the only one there is."""
    if is_hyper(pl_module):
        own: Injector = pl_module._injector
        return own
    found = injectors(pl_module)
    if len(found) > 1:
        paths = [name for name, child in pl_module.named_modules() if any(child is each.root for each in found)]
        raise MisconfigurationException(
            f"{type(callback).__name__} is for one hypernetized network, but {type(pl_module).__name__} holds "
            f"{', '.join(paths)}, and none of them is that of a HyperLightningModule; leave the callback out, and use "
            "mip.PerH for metrics by h, mip.diagnose(network, ...) for magnitudes."
        )
    return the_injector(pl_module)


def show_in_progress_bar(trainer: L.Trainer, h: dict[str, Tensor]) -> None:
    """Show the numbers in ``h`` beside the module's own entries."""
    if trainer.progress_bar_callback is None or trainer.barebones:
        return
    # Not by `log`, which takes longer than all else that a draw of h costs.
    trainer.progress_bar_metrics.update({f"h/{name}": float(value) for name, value in h.items() if value.ndim == 0})


def _check_optimization(pl_module: Any) -> None:
    """Refuse to split the batches of a step that would then take a step of the optimizer for each part."""
    if pl_module.draws_per_batch > 1 and not pl_module.automatic_optimization:
        raise MisconfigurationException(
            f"draws_per_batch={pl_module.draws_per_batch} runs training_step on each part of a batch, but that of "
            f"{type(pl_module).__name__} steps the optimizer itself (automatic_optimization=False), so each part would "
            "be a step of its own; leave draws_per_batch out, take batches as small as the parts, and step the "
            f"optimizer after every {pl_module.draws_per_batch} of them."
        )


class SampleH(L.Callback):
    """Draws ``h`` for each training batch of a `HyperLightningModule`, which adds it unless it is given.

    The draw is a function of (seed, rank, training batch counter): a resumed run draws what it would have drawn, on
    every rank, and there is no state to save. The current values appear in the progress bar. The counter of a new
    Trainer begins at zero, so of several short runs give each another ``seed``: else all draw the same few values.

    Args:
        seed: seed of the draws.
        strategy: ``random``; ``sobol`` and ``stratified`` spread the draws over steps and ranks.
        same_on_all_ranks: use rank 0's draw everywhere; by default each rank has its own.
    """

    def __init__(
        self,
        seed: int = 0,
        strategy: Literal["random", "sobol", "stratified"] = "random",
        same_on_all_ranks: bool = False,
    ) -> None:
        check_whole("seed", seed)
        if strategy not in STRATEGIES:
            raise ValueError(f"strategy is {shown(strategy)}, expected one of {', '.join(map(repr, STRATEGIES))}.")
        self.seed, self.strategy, self.same_on_all_ranks = seed, strategy, same_on_all_ranks
        self._losses = LossWatch()
        self._looked = False

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Refuse a module that has no ``h`` to draw, and strategies that its network does not go with."""
        if not is_hyper(pl_module):
            raise MisconfigurationException(
                f"SampleH draws for a HyperLightningModule, but {type(pl_module).__name__} is none; give it to the "
                "plug-in instead: Hypernetize(..., sampler=SampleH(...))."
            )
        check_whole_parameters(trainer, pl_module)
        if stage == "fit":
            check_dense_gradients(trainer, pl_module._injector)
            _check_optimization(pl_module)
        pl_module._wrap_steps()
        tie = tie_across(pl_module, pl_module._injector.root, pl_module._injector.names)
        if tie is not None:
            raise MisconfigurationException(tie_text(pl_module, "primary", tie, "Let the primary hold both"))

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Match the optimizer; refuse ones that leave out the hypernetwork, such as one of the primary alone."""
        missing = left_out(pl_module, pl_module.hypernet, trainer.optimizers)
        if missing:
            raise MisconfigurationException(
                f"{len(missing)} parameters of the hypernetwork are in no optimizer, so they would never be trained; "
                "give self.parameters() to the optimizer, or freeze them by model.hypernet.requires_grad_(False)."
            )
        match(pl_module.hypernet, trainer.optimizers)
        self._losses, self._looked = LossWatch(), False

    def draw(self, trainer: L.Trainer, space: HSpace, n: int | None = None) -> dict[str, Tensor]:
        """Draw ``h`` for the training batch that the trainer is at."""
        rank, world_size = (0, 1) if self.same_on_all_ranks else (trainer.global_rank, trainer.world_size)
        step = trainer.fit_loop.epoch_loop.total_batch_idx
        return space.sample(seed=self.seed, rank=rank, step=step, n=n, strategy=self.strategy, world_size=world_size)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Draw ``h`` and bring it into force."""
        if pl_module.h_from_batch is not None:
            h = pl_module.batch_h(batch)
        else:
            h = self.draw(trainer, pl_module.space, pl_module.draws_of(batch))
        pl_module.start_batch(h)
        show_in_progress_bar(trainer, h)

    def on_before_backward(self, trainer: L.Trainer, pl_module: Any, loss: Tensor) -> None:
        """Look whether the loss is finite, without waiting for it, and at the first one, what it reads."""
        if not (self._looked or pl_module.per_sample):
            self._looked = True
            warn_of_theta0_read(loss, pl_module._injector, "primary")
        for part, h in pl_module._losses_by_h(loss):
            self._losses.see(trainer, part, pl_module.space, h)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Drop the generated weights; ``h`` stays readable until the next batch."""
        pl_module.end_batch()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Check, once per epoch, that the network was trained, and losses and the last weights were finite."""
        pl_module.check_used()
        self._losses.check(trainer, pl_module.space)
        pl_module.check_finite()

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Return to the center of the priors."""
        pl_module.release_h()

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Begin evaluation on the grid."""
        pl_module.start_evaluation()

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """End it."""
        pl_module.end_evaluation()

    def on_test_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Begin evaluation on the grid."""
        pl_module.start_evaluation()

    def on_test_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """End it."""
        pl_module.end_evaluation()

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Leave the module as it was before the run."""
        if is_hyper(pl_module):
            pl_module.end_evaluation()
            pl_module.release_h()


class SampleHInSearch(SampleH):
    """Draws in a search for a learning rate or a batch size, which sees to losses that are not finite itself."""

    def on_before_backward(self, trainer: L.Trainer, pl_module: Any, loss: Tensor) -> None:
        """Leave the loss to the search."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Leave the weights to it."""
