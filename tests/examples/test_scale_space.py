"""The scale-space example: its data, loss, costs, steps, and the demo on a tiny budget."""

from __future__ import annotations

import time
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor

import lightning_mip as mip
from examples.common.unet import RescalingUNet
from examples.scale_space import demo
from examples.scale_space.cost import megaflops, milliseconds
from examples.scale_space.data import BrainSlices, Cells, Segmented, read_pairs, resized
from examples.scale_space.loss import soft_dice_loss
from examples.scale_space.task import ScaleSpace
from lightning_mip.cli import main

HERE = Path(demo.__file__).parent
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
ON_CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1"]
TINY = ["--model.init_args.primary.init_args.widths", "[2, 3, 4]"]
SMALL = [*QUIET, *ON_CPU, *TINY, "--trainer.max_epochs", "5", "--trainer.limit_train_batches", "1"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def unlogged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps called by hand log nowhere."""
    monkeypatch.setattr(L.LightningModule, "log", lambda *_, **__: None)


def write_npz(folder: Path, count: int = 10, side: int = 12) -> dict[str, np.ndarray]:
    """A wbc.npz of noise."""
    generator = np.random.default_rng(0)
    arrays = {
        "image": generator.integers(0, 256, (count, side, side, 3), dtype=np.uint8),
        "label": generator.integers(0, 3, (count, side, side), dtype=np.uint8),
        "train_idx": np.arange(count - 4),
        "val_idx": np.arange(count - 4, count - 2),
        "test_idx": np.arange(count - 2, count),
    }
    np.savez(folder / "wbc.npz", **arrays)
    return arrays


def write_brain(folder: Path) -> dict[str, np.ndarray]:
    """An ixi_brain2d.npz of noise: 6 subjects, 3 slices."""
    generator = np.random.default_rng(0)
    arrays = {
        "image": generator.integers(0, 256, (6, 3, 8, 8), dtype=np.uint8),
        "seg4": generator.integers(0, 5, (6, 3, 8, 8), dtype=np.uint8),
        "train_idx": np.array([5, 1, 2]),
        "val_idx": np.array([0]),
        "test_idx": np.array([3, 4]),
    }
    np.savez(folder / "ixi_brain2d.npz", **arrays)
    return arrays


def write_archive(folder: Path, counts: dict[str, int]) -> None:
    """Folders of bmp and png of noise, of different sizes, with a stray value in every mask."""
    from PIL import Image

    generator = np.random.default_rng(0)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for k in range(count):
            side = 10 + k
            mask = generator.choice(np.array([0, 128, 255], np.uint8), (side, side))
            mask[0, 0] = 131
            colours = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(colours).save(folder / name / f"{k:03}.bmp")
            Image.fromarray(mask).save(folder / name / f"{k:03}.png")


def ready(module: Cells | BrainSlices) -> Cells | BrainSlices:
    module.setup()
    return module


def logits_of(labels: Tensor, classes: int) -> Tensor:
    return 50 * torch.nn.functional.one_hot(labels, classes).movedim(-1, 1).double()


def test_the_loss_is_0_where_all_is_right_and_1_where_nothing_is() -> None:
    labels = torch.randint(3, (2, 6, 6), generator=torch.Generator().manual_seed(0))
    assert soft_dice_loss(logits_of(labels, 3), labels).item() == pytest.approx(0, abs=1e-9)
    assert soft_dice_loss(logits_of((labels + 1) % 3, 3), labels).item() == pytest.approx(1, abs=1e-6)


def test_the_loss_is_one_less_the_overlap_of_sure_label_maps() -> None:
    labels, found = torch.tensor([[[1, 1, 0, 2]]]), torch.tensor([[[1, 0, 1, 2]]])
    # Class 1: one of two found, and two are called so; class 2 is right. The background does not count.
    assert soft_dice_loss(logits_of(found, 3), labels).item() == pytest.approx(1 - (0.5 + 1) / 2, abs=1e-6)


def test_cells_of_the_npz_keep_its_split(tmp_path: Path) -> None:
    arrays = write_npz(tmp_path)
    cells = ready(Cells(tmp_path, batch_size=3, image_size=12))
    assert {name: len(part) for name, part in cells.parts.items()} == {"train": 6, "val": 2, "test": 2}
    x, y = next(iter(cells.test_dataloader()))
    assert torch.allclose(x * 255, torch.as_tensor(arrays["image"][8:]).permute(0, 3, 1, 2).float(), atol=1e-4)
    assert torch.equal(y, torch.as_tensor(arrays["label"][8:]).long())
    assert next(iter(cells.train_dataloader()))[0].shape == (3, 3, 12, 12)


def test_the_folder_of_the_environment_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_npz(tmp_path)
    monkeypatch.setenv("LIGHTNING_MIP_DATA", str(tmp_path))
    assert len(ready(Cells()).parts["train"]) == 6


def test_the_archive_is_read_and_each_of_its_folders_split(tmp_path: Path) -> None:
    write_archive(tmp_path, {"Dataset 1": 10, "Dataset 2": 5})
    cells = ready(Cells(tmp_path, image_size=8))
    assert {name: len(part) for name, part in cells.parts.items()} == {"train": 9, "val": 3, "test": 3}
    images = torch.cat([part.images for part in cells.parts.values()])
    assert images.shape == (15, 3, 8, 8)
    assert 0 <= images.min() < images.max() <= 1
    assert len(images.flatten(1).unique(dim=0)) == 15
    assert {int(label) for part in cells.parts.values() for label in part.labels.unique()} == {0, 1, 2}


def test_the_split_of_the_archive_depends_on_the_seed_alone(tmp_path: Path) -> None:
    write_archive(tmp_path, {"Dataset 1": 10})
    first, again, other = (ready(Cells(tmp_path, image_size=8, seed=seed)).parts["test"].images for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_masks_are_labels_by_the_nearest_of_their_values(tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "Dataset 1"
    folder.mkdir()
    grey = np.array([[0, 128, 255, 131], [60, 70, 190, 200]], np.uint8)
    Image.fromarray(np.zeros((2, 4, 3), np.uint8)).save(folder / "001.bmp")
    Image.fromarray(grey).save(folder / "001.png")
    ((_, labels),) = read_pairs(folder)
    assert labels.tolist() == [[0, 1, 2, 1], [0, 1, 1, 2]]


def test_an_image_without_mask_is_an_error(tmp_path: Path) -> None:
    write_archive(tmp_path, {"Dataset 1": 2})
    (tmp_path / "Dataset 1" / "001.png").unlink()
    with pytest.raises(FileNotFoundError) as error:
        ready(Cells(tmp_path))
    assert str(error.value) == (
        f"{tmp_path / 'Dataset 1' / '001.bmp'} has no mask 001.png beside it. Each image of the archive "
        "zxaoyou/segmentation_WBC is a pair such as 001.bmp and 001.png: unpack it again."
    )


def test_a_mask_of_another_size_is_an_error(tmp_path: Path) -> None:
    from PIL import Image

    write_archive(tmp_path, {"Dataset 1": 1})
    mask = tmp_path / "Dataset 1" / "000.png"
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(mask)
    with pytest.raises(ValueError, match=r"of shape \(3, 4\), its image of \(10, 10\); expected the same"):
        ready(Cells(tmp_path))


def test_a_folder_without_images_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "Dataset 1").mkdir()
    with pytest.raises(FileNotFoundError, match=r"Dataset 1 holds no \.bmp\. Give the unpacked archive"):
        ready(Cells(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"wbc\.npz does not exist.*LIGHTNING_MIP_DATA"):
        ready(Cells(tmp_path / "nowhere"))


@pytest.mark.parametrize("argument", ["batch_size", "image_size"])
def test_sizes_below_1_are_refused(argument: str) -> None:
    with pytest.raises(ValueError, match=f"{argument}=0 must be at least 1"):
        Cells(**{argument: 0})


def test_brain_slices_are_split_by_subject(tmp_path: Path) -> None:
    arrays = write_brain(tmp_path)
    brain = ready(BrainSlices(tmp_path, image_size=8))
    assert {name: len(part) for name, part in brain.parts.items()} == {"train": 9, "val": 3, "test": 6}
    for part in ("train", "val", "test"):
        wanted = arrays["seg4"][arrays[f"{part}_idx"]].reshape(-1, 8, 8)
        assert torch.equal(brain.parts[part].labels, torch.as_tensor(wanted).long())
    assert brain.parts["train"].images.shape == (9, 1, 8, 8)
    assert len(brain.names) == 5


def test_images_are_averaged_and_labels_are_not() -> None:
    images = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1)
    labels = np.repeat(np.repeat(np.array([[[0, 2], [4, 1]]], np.uint8), 2, 1), 2, 2)
    x, y = resized(images, labels, 2)
    assert torch.allclose(x * 255, torch.tensor([[[[2.5, 4.5], [10.5, 12.5]]]]))
    assert y.tolist() == [[[0, 2], [4, 1]]]


def test_mirrored_images_keep_their_labels_in_place() -> None:
    labels = torch.arange(16).view(1, 4, 4)
    part = Segmented(labels.unsqueeze(1).float(), labels, mirror=(1, 2))
    seen = set()
    for _ in range(100):
        x, y = part[0]
        assert torch.equal(x[0].long(), y)
        seen.add(tuple(y.flatten().tolist()))
    assert len(seen) == 4


def test_operations_are_those_of_the_convolutions_and_grow_with_phi() -> None:
    net, image = RescalingUNet(1, 2, (2, 3)), torch.rand(2, 1, 8, 8)
    # Two per product: 9 weights per pair of channels at each pixel of a level, and the last layer's 1 x 1.
    full, half = 9 * (1 * 2 + 2 * 2 + 5 * 2 + 2 * 2) + 2 * 2, 9 * (2 * 3 + 3 * 3)
    assert megaflops(net, image, 0.5) * 1e6 == 2 * (64 * full + 16 * half)
    assert megaflops(net, image, 0.0) * 1e6 == 2 * (64 * full + half)


def test_time_is_per_image_and_of_the_fastest_round() -> None:
    slept = iter([0.3, 0.001, 0.3])

    class Slow(RescalingUNet):
        def forward(self, x: Tensor, factor: float = 0.5) -> Tensor:
            time.sleep(next(slept))
            return x

    found = milliseconds({0.5: Slow(1, 2, (2, 3))}, torch.rand(4, 1, 8, 8), rounds=3)
    # A millisecond for four images, and what a busy machine adds.
    assert 0.25 <= found[0.5] < 70


def config_of(name: str, folder: Path) -> list[str]:
    root = ["--data.root", str(folder), "--data.image_size", "8"]
    return ["--config", str(HERE / f"{name}.yaml"), *root]


@pytest.mark.parametrize(("name", "write"), [("cells", write_npz), ("brain", write_brain)])
def test_the_configs_train_and_validate_every_phi(tmp_path: Path, name: str, write: object) -> None:
    write(tmp_path)
    save = ["--trainer.logger.init_args.save_dir", str(tmp_path)]
    cli = main(["fit", *config_of(name, tmp_path), *save, *SMALL])
    logged = cli.trainer.callback_metrics
    per_phi = [value for key, value in logged.items() if key.startswith("val_dice/phi=")]
    assert len(per_phi) == 4
    assert float(logged["val_dice"]) == pytest.approx(float(torch.stack(per_phi).mean()), abs=1e-6)


@pytest.mark.usefixtures("unlogged")
def test_phi_reaches_the_network_and_the_hypernetwork() -> None:
    seen = []

    class Recorder(RescalingUNet):
        def forward(self, x: Tensor, factor: float = 0.5) -> Tensor:
            seen.append((factor, self.last.weight.detach().clone()))
            return super().forward(x, factor)

    torch.manual_seed(0)
    model = ScaleSpace(Recorder(1, 2, (2, 3)), {"phi": mip.Uniform(0, 0.5)})
    batch = torch.rand(1, 1, 8, 8), torch.zeros(1, 8, 8).long()
    for phi in (0.1, 0.4):
        with model.at(phi=phi):
            model.training_step(batch, 0)
    (low, low_weight), (high, high_weight) = seen
    assert (low, high) == (pytest.approx(0.1), pytest.approx(0.4))
    assert not torch.equal(low_weight, high_weight)


def test_the_demo_prints_both_tables_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_npz(tmp_path)
    out = tmp_path / "new" / "cells.png"
    data = ["--data.root", str(tmp_path), "--data.image_size", "8"]
    outcome = demo.main(["cells", "--out", str(out), "--runs", str(tmp_path), *data, *SMALL])
    assert out.read_bytes().startswith(b"\x89PNG")
    assert [point.phi for point in outcome.front] == pytest.approx(np.linspace(0.125, 0.5, 7))
    assert [point.phi for point in outcome.separate] == pytest.approx([0.125, 0.3125, 0.5])
    costs = [point.megaflops for point in outcome.front]
    assert costs == sorted(costs)
    assert [point.megaflops for point in outcome.separate] == costs[::3]
    assert outcome.cheapest.val_dice >= outcome.best.val_dice - demo.LOSS
    printed = capsys.readouterr().out
    for point in (*outcome.front, *outcome.separate):
        assert f"{point.dice:.4f}" in printed
    assert f"phi={outcome.cheapest.phi:.4g}" in printed
