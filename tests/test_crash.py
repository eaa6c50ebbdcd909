"""Processes that are killed: what they leave resumes, and ends as the run that nobody killed."""

from __future__ import annotations

import os
import random
import resource
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

import lightning_mip as mip
from lightning_mip.cli import main
from tests import processes
from tests.tasks import Evaluated, SaveAt, Task, dataset, drawn, loader, make, sequence

processes.preload("tests.test_crash")
pytestmark = pytest.mark.timeout(60)

EPOCHS = 4
OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9),
    "Adam": lambda parameters: torch.optim.Adam(parameters, 0.01),
}


def limit_files() -> None:
    """Let the kernel kill this process in the middle of writing a checkpoint: once a file is longer than this."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


class Noting(Evaluated):
    """Writes the h of each step to a file of its process, with the step's number."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        step, root = self.trainer.fit_loop.epoch_loop.total_batch_idx, Path(self.trainer.default_root_dir)
        with (root / f"h{self.global_rank}").open("a") as file:
            file.write(f"{step} {float(self.h['lam'])!r}\n")
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch), sync_dist=True)


class Dying(L.Callback):
    """Kills its process, without a last word, at a moment of the third epoch or at the start."""

    def __init__(self, moment: str) -> None:
        self.moment = moment

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._die("start", 0)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._die("in an epoch", trainer.current_epoch)

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if not trainer.sanity_checking:
            self._die("in validation", trainer.current_epoch)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if self.moment == "while writing" and trainer.current_epoch == 2:
            limit_files()

    def _die(self, moment: str, epoch: int) -> None:
        if moment == self.moment and epoch == (0 if moment == "start" else 2):
            os.kill(os.getpid(), signal.SIGKILL)


class DyingSoon(L.Callback):
    """Kills its process some time after a number of steps, whatever it does then: it does not outlive its training."""

    def __init__(self, steps: int, seconds: float) -> None:
        self.steps, self.seconds = steps, seconds

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps -= 1
        if self.steps == 0:
            self.kill = threading.Timer(self.seconds, os.kill, (os.getpid(), signal.SIGKILL))
            self.kill.start()

    def on_fit_end(self, *_: Any) -> None:
        if self.steps <= 0:
            self.kill.join()


def fit(
    folder: Path,
    ranks: int,
    optimizer: str,
    epochs: int = EPOCHS,
    plugins: Any = (),
    dies: L.Callback | None = None,
    dying: int = 0,
) -> None:
    """Train from the last checkpoint, if there is one; process ``dying`` has the callback ``dies``."""
    processes.ignore(
        '.*ckpt_path="last".* is set, but there is no last checkpoint', "Checkpoint directory .* not empty"
    )
    folder.mkdir(exist_ok=True)
    saving = ModelCheckpoint(dirpath=folder / "checkpoints", filename="{epoch}", save_top_k=-1, save_last=True)
    callbacks = [saving, dies] if dies and int(os.environ["LOCAL_RANK"]) == dying else [saving]
    trainer = L.Trainer(
        default_root_dir=folder,
        max_epochs=epochs,
        accelerator="cpu",
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        callbacks=callbacks,
        plugins=list(plugins),
        **dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False),
    )
    trainer.fit(make(Noting, optimizer=OPTIMIZERS[optimizer]), loader(), loader(seed=1), ckpt_path="last")


def assert_same_run(folder: Path, whole: Path, ranks: int, epochs: int = EPOCHS) -> None:
    """The checkpoints of all epochs are the same bits, and each step had its h, as often as it was taken."""
    for epoch in range(epochs):
        one, other = (
            torch.load(place / "checkpoints" / f"epoch={epoch}.ckpt", weights_only=True) for place in (folder, whole)
        )
        for key in ("state_dict", "optimizer_states", "global_step", "epoch"):
            assert_equal(one[key], other[key], f"{key} of epoch {epoch}")
    for rank in range(ranks):
        steps = epochs * 4 // ranks
        expected = sequence(make(), steps, rank=rank, world_size=ranks)
        noted = [line.split() for line in (folder / f"h{rank}").read_text().splitlines()]
        assert {int(step) for step, _ in noted} == set(range(steps))
        assert all(float(lam) == expected[int(step)] for step, lam in noted)


def assert_equal(one: Any, other: Any, what: str) -> None:
    if isinstance(one, Tensor):
        assert torch.equal(one, other), what
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), what
        for key in one:
            assert_equal(one[key], other[key], f"{what}: {key}")
    elif isinstance(one, (list, tuple)):
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b, what)
    else:
        assert one == other, what


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, str], Path]:
    """Folders of runs that nobody kills."""
    made: dict[tuple[int, str], Path] = {}

    def folder(ranks: int, optimizer: str) -> Path:
        if (ranks, optimizer) not in made:
            made[ranks, optimizer] = tmp_path_factory.mktemp("whole")
            processes.run(ranks, fit, made[ranks, optimizer], ranks, optimizer)
        return made[ranks, optimizer]

    return folder


# Epochs whose checkpoints are there when the process dies.
MOMENTS = {"start": 0, "in an epoch": 2, "in validation": 2, "while writing": 2}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_killed_run_resumes_and_ends_with_the_same_bits(
    tmp_path: Path, whole: Callable[[int, str], Path], ranks: int, optimizer: str, moment: str
) -> None:
    # The first process writes the checkpoints; elsewhere it is the other that dies.
    dying = 0 if moment == "while writing" else ranks - 1
    codes = processes.ended(processes.start(ranks, fit, tmp_path, ranks, optimizer, EPOCHS, (), Dying(moment), dying))
    assert codes[dying] in (-signal.SIGKILL, -signal.SIGXFSZ)
    assert 0 not in codes  # the other one does not wait for ever, nor take itself for done
    for path in (tmp_path / "checkpoints").glob("*.ckpt"):
        torch.load(path, weights_only=True)
    assert len([*tmp_path.glob("checkpoints/epoch=*.ckpt")]) == MOMENTS[moment]
    processes.run(ranks, fit, tmp_path, ranks, optimizer)
    assert_same_run(tmp_path, whole(ranks, optimizer), ranks)


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_killed_again_and_again_at_random_ends_with_the_same_bits(
    tmp_path: Path, ranks: int, optimizer: str
) -> None:
    chance, epochs, killed, whole = random.Random(f"{ranks} {optimizer}"), 40, tmp_path / "killed", tmp_path / "whole"
    processes.run(ranks, fit, whole, ranks, optimizer, epochs)
    atomic, kills = [mip.AtomicCheckpointIO()], 0
    for _ in range(10):
        dies = DyingSoon(chance.randint(1, epochs // ranks), chance.uniform(0, 0.02))
        running = processes.start(ranks, fit, killed, ranks, optimizer, epochs, atomic, dies, chance.randrange(ranks))
        codes = processes.ended(running)
        kills += -signal.SIGKILL in codes
        for path in (killed / "checkpoints").glob("*.ckpt"):
            torch.load(path, weights_only=True)
        if not any(codes):
            break
    assert kills  # one is certain, as the first is told to die before it can end; 6 to 8 are usual
    processes.run(ranks, fit, killed, ranks, optimizer, epochs, atomic)
    assert_same_run(killed, whole, ranks, epochs)


# --- One file, written twice


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """A folder for temporary files on a file system of its own."""
    if not Path("/dev/shm").is_dir():
        pytest.skip("needs a second file system, which Linux has in /dev/shm")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield folder


def killed_in_the_second(path: Path, plugins: Any, how: str, elsewhere: str) -> None:
    """Write two checkpoints to one path, and die in the second: as it is written, or copied from elsewhere."""
    tempfile.tempdir = elsewhere
    trainer = L.Trainer(logger=False, accelerator="cpu", plugins=list(plugins), default_root_dir=path.parent)
    model = make(Evaluated)
    trainer.strategy.connect(model)
    nn.init.constant_(model.primary.first.bias, 1)
    trainer.save_checkpoint(path)
    nn.init.constant_(model.primary.first.bias, 2)
    if how == "written":
        limit_files()
    else:
        os.sendfile = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    trainer.save_checkpoint(path)


def version(path: Path) -> float:
    return float(torch.load(path, weights_only=True)["state_dict"]["primary.first.bias"][0])


def test_an_atomic_write_leaves_the_old_file_until_the_new_one_is_whole(tmp_path: Path, elsewhere: str) -> None:
    path, plugins = tmp_path / "last.ckpt", [mip.AtomicCheckpointIO()]
    killed = processes.start(1, killed_in_the_second, path, plugins, "written", elsewhere)
    assert processes.ended(killed) == [-signal.SIGXFSZ]
    assert version(path) == 1
    assert [file.name for file in tmp_path.iterdir() if file != path] == [".last.ckpt.part"]
    processes.run(1, killed_in_the_second, path, plugins, "copied", elsewhere)  # which it never is
    assert version(path) == 2
    assert [*tmp_path.iterdir()] == [path]


def test_lightnings_own_write_may_leave_a_part_in_the_place_of_the_old_file(tmp_path: Path, elsewhere: str) -> None:
    """Why there is AtomicCheckpointIO: once this fails, it is not needed any more."""
    path = tmp_path / "last.ckpt"
    killed = processes.start(1, killed_in_the_second, path, [], "copied", elsewhere)
    assert processes.ended(killed) == [-signal.SIGKILL]
    assert path.stat().st_size == 0


def test_a_write_that_fails_leaves_no_part_behind(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    mip.AtomicCheckpointIO().save_checkpoint({"epoch": 1}, path)
    with pytest.raises(Exception, match="pickle"):
        mip.AtomicCheckpointIO().save_checkpoint({"epoch": lambda: None}, path)
    assert [*tmp_path.iterdir()] == [path]
    assert mip.AtomicCheckpointIO().load_checkpoint(path) == {"epoch": 1}


def test_where_names_are_not_of_files_here_it_is_lightnings_own(tmp_path: Path) -> None:
    mip.AtomicCheckpointIO().save_checkpoint({"epoch": 1}, "memory://run/last.ckpt")
    assert mip.AtomicCheckpointIO().load_checkpoint("memory://run/last.ckpt", weights_only=True) == {"epoch": 1}
    mip.AtomicCheckpointIO().save_checkpoint({"epoch": 2}, f"file://{tmp_path}/run/last.ckpt")
    assert torch.load(tmp_path / "run" / "last.ckpt") == {"epoch": 2}
    with pytest.raises(TypeError, match="storage_options"):
        mip.AtomicCheckpointIO().save_checkpoint({}, tmp_path / "last.ckpt", storage_options={})


def test_a_config_names_it(tmp_path: Path) -> None:
    config = yaml.safe_load((Path(__file__).parent / "configs" / "regression.yaml").read_text())
    config["trainer"] |= {
        "default_root_dir": str(tmp_path),
        "plugins": [{"class_path": "lightning_mip.AtomicCheckpointIO"}],
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    trainer = main(["fit", f"--config={tmp_path}/run.yaml"]).trainer
    assert isinstance(trainer.strategy.checkpoint_io, mip.AtomicCheckpointIO)
    assert [*tmp_path.glob("checkpoints/*.ckpt")]


# --- The middle of an epoch


class Positioned(DataLoader[Any]):
    """Knows where it is, as torchdata's StatefulDataLoader does."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.position = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        begin = self.position
        for index, batch in enumerate(super().__iter__()):
            if index >= begin:
                self.position = index + 1
                yield batch
        self.position = 0

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


@pytest.mark.parametrize("kind", [DataLoader, Positioned])
@pytest.mark.filterwarnings("ignore:You.re resuming from a checkpoint that ended before the epoch ended")
def test_in_the_middle_of_an_epoch_h_goes_on_and_the_data_if_their_loader_can(
    trainer: Callable[..., L.Trainer], tmp_path: Path, kind: Any
) -> None:
    whole, later = make(Task), make(Task)
    data = [kind(dataset(), batch_size=4) for _ in range(2)]
    trainer(max_epochs=3, callbacks=[SaveAt(tmp_path / "middle.ckpt", batches=6)]).fit(whole, data[0])
    trainer(max_epochs=3).fit(later, data[1], ckpt_path=tmp_path / "middle.ckpt")
    assert drawn(later) == drawn(whole)[6:]
    same = all(map(torch.equal, whole.parameters(), later.parameters()))
    assert same == (kind is Positioned)


# --- Shuffled data


@pytest.mark.parametrize("by_epoch", [False, True], ids=["shuffle=True", "a sampler that is told the epoch"])
def test_shuffled_data_resume_if_their_order_is_a_function_of_the_epoch(
    trainer: Callable[..., L.Trainer], tmp_path: Path, by_epoch: bool
) -> None:
    def shuffled() -> DataLoader[Any]:
        if not by_epoch:
            return loader(shuffle=True)
        return loader(sampler=DistributedSampler(dataset(), num_replicas=1, rank=0, seed=3))

    whole, later = make(Task), make(Task)
    torch.manual_seed(0)
    trainer(max_epochs=3, callbacks=[SaveAt(tmp_path / "first.ckpt", epoch=0)]).fit(whole, shuffled())
    torch.manual_seed(0)
    trainer(max_epochs=3).fit(later, shuffled(), ckpt_path=tmp_path / "first.ckpt")
    assert drawn(later) == drawn(whole)[4:]
    same = all(map(torch.equal, whole.parameters(), later.parameters()))
    assert same == by_epoch
