"""Images with label maps: white blood cells, and slices of brains."""

from __future__ import annotations

import os
from pathlib import Path

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from examples.common.arrays import data_root, read

Batch = tuple[Tensor, Tensor]
# Grey values of the masks of the archive -> label: background, cytoplasm, nucleus.
MASK_VALUES = (0, 128, 255)
PARTS = ("train", "val", "test")


class Segmented(Dataset[Batch]):
    """Images (N, C, H, W) in [0, 1] and label maps (N, H, W), held in memory.

    Args:
        images: The images.
        labels: Their labels.
        mirror: The axes (1: rows, 2: columns of a label map) along which each batch is mirrored with probability 1/2.
    """

    def __init__(self, images: Tensor, labels: Tensor, mirror: tuple[int, ...] = ()) -> None:
        self.images, self.labels, self.mirror = images, labels, mirror

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Batch:
        x, y = self.__getitems__([index])
        return x[0], y[0]

    # The loader asks for a whole batch at once.
    def __getitems__(self, indices: list[int]) -> Batch:
        axes = [axis for axis in self.mirror if torch.rand(()) < 0.5]
        return self.images[indices].flip([axis + 1 for axis in axes]), self.labels[indices].flip(axes)

    def all(self) -> Batch:
        """All images and labels as they are."""
        return self.images, self.labels


def _as_is(batch: Batch) -> Batch:
    return batch


class _SegmentedDataModule(L.LightningDataModule):
    """Loaders over the three parts.

    A subclass names its classes and mirrored axes, and gives images (N, H, W, C), labels (N, H, W) and the split.
    """

    names: tuple[str, ...]
    mirror: tuple[int, ...]

    def __init__(self, root: str | os.PathLike[str] | None, batch_size: int, image_size: int) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("image_size", image_size)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        self.root = data_root("scale_space") if root is None else Path(root).expanduser()
        self.batch_size, self.image_size = batch_size, image_size
        self.parts: dict[str, Segmented] = {}

    def load(self) -> tuple[Tensor, Tensor, dict[str, np.ndarray]]:
        """Images (N, C, side, side), labels (N, side, side), the indices of each part; each data set reads its own."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        if self.parts:
            return
        images, labels, split = self.load()
        for part, index in split.items():
            at = torch.as_tensor(index).long()
            self.parts[part] = Segmented(images[at], labels[at], self.mirror if part == "train" else ())

    def _loader(self, part: str, shuffle: bool = False) -> DataLoader[Batch]:
        return DataLoader(self.parts[part], self.batch_size, shuffle=shuffle, collate_fn=_as_is)

    def train_dataloader(self) -> DataLoader[Batch]:
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._loader("test")


class Cells(_SegmentedDataModule):
    """White blood cells in smears: background, cytoplasm, nucleus.

    Args:
        root: The folder of `wbc.npz`, or the unpacked archive zxaoyou/segmentation_WBC with its folders "Dataset 1"
            and "Dataset 2" of `001.bmp` (image) and `001.png` (mask). Without it, the folder in LIGHTNING_MIP_DATA,
            else a cache folder of the user.
        batch_size: Images per batch.
        image_size: Side to which images are averaged down.
        seed: Fixes the split of the archive, 60 / 20 / 20 % of each of its folders; the .npz brings its own.
    """

    names = ("background", "cytoplasm", "nucleus")
    mirror = (1, 2)

    def __init__(
        self, root: str | os.PathLike[str] | None = None, batch_size: int = 8, image_size: int = 48, seed: int = 0
    ) -> None:
        super().__init__(root, batch_size, image_size)
        self.seed = seed

    def load(self) -> tuple[Tensor, Tensor, dict[str, np.ndarray]]:
        folders = [folder for folder in sorted(self.root.glob("Dataset *")) if folder.is_dir()]
        if folders and not (self.root / "wbc.npz").is_file():
            return self._archive(folders)
        file = read(self.root, "wbc.npz")
        images, labels = resized(file["image"], file["label"], self.image_size)
        return images, labels, {part: file[f"{part}_idx"] for part in PARTS}

    def _archive(self, folders: list[Path]) -> tuple[Tensor, Tensor, dict[str, np.ndarray]]:
        generator = np.random.default_rng(self.seed)
        pairs, split = [], {part: [] for part in PARTS}
        for folder in folders:
            read_here = read_pairs(folder)
            order = len(pairs) + generator.permutation(len(read_here))
            cuts = np.round(np.array([0.6, 0.8]) * len(order)).astype(int)
            for part, index in zip(PARTS, np.split(order, cuts), strict=True):
                split[part].extend(index.tolist())
            # One by one: the archive's images are of many sizes.
            pairs += [resized(image[None], label[None], self.image_size) for image, label in read_here]
        images, labels = (torch.cat(tensors) for tensors in zip(*pairs, strict=True))
        return images, labels, {part: np.array(index) for part, index in split.items()}


def read_pairs(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """The images (H, W, 3) and labels (H, W) of one folder of the archive, in the order of their names."""
    from PIL import Image

    pairs = []
    for path in sorted(folder.glob("*.bmp")):
        mask = path.with_suffix(".png")
        if not mask.is_file():
            raise FileNotFoundError(
                f"{path} has no mask {mask.name} beside it. Each image of the archive zxaoyou/segmentation_WBC is a "
                "pair such as 001.bmp and 001.png: unpack it again."
            )
        with Image.open(path) as image, Image.open(mask) as grey:
            colours, values = np.array(image.convert("RGB")), np.array(grey.convert("L"))
        if values.shape != colours.shape[:2]:
            raise ValueError(f"{mask} is of shape {values.shape}, its image of {colours.shape[:2]}; expected the same.")
        # A few masks have stray values between the three.
        pairs.append((colours, np.abs(values[..., None].astype(int) - MASK_VALUES).argmin(-1)))
    if not pairs:
        raise FileNotFoundError(
            f"{folder} holds no .bmp. Give the unpacked archive zxaoyou/segmentation_WBC as root: its folders "
            "'Dataset 1' and 'Dataset 2' hold pairs such as 001.bmp and 001.png."
        )
    return pairs


class BrainSlices(_SegmentedDataModule):
    """Coronal slices of brains: background, cortex, subcortical gray, white matter with brain stem, CSF.

    The split is by subject.

    Args:
        root: The folder of `ixi_brain2d.npz`. Without it, the folder in LIGHTNING_MIP_DATA, else a cache folder.
        batch_size: Images per batch.
        image_size: Side to which images are averaged down.
    """

    names = ("background", "cortex", "subcortical gray", "white matter", "CSF")
    mirror = (2,)

    def __init__(self, root: str | os.PathLike[str] | None = None, batch_size: int = 8, image_size: int = 40) -> None:
        super().__init__(root, batch_size, image_size)

    def load(self) -> tuple[Tensor, Tensor, dict[str, np.ndarray]]:
        file = read(self.root, "ixi_brain2d.npz")
        subjects, slices = file["image"].shape[:2]
        flat = [file[name].reshape(subjects * slices, *file[name].shape[2:]) for name in ("image", "seg4")]
        images, labels = resized(flat[0][..., None], flat[1], self.image_size)
        of_subject = np.arange(subjects * slices).reshape(subjects, slices)
        return images, labels, {part: of_subject[file[f"{part}_idx"]].ravel() for part in PARTS}


def resized(images: np.ndarray, labels: np.ndarray, side: int) -> Batch:
    """Bytes (N, H, W, C) and labels (N, H, W) as images (N, C, side, side) in [0, 1] and labels of that size."""
    x = F.interpolate(torch.as_tensor(images).permute(0, 3, 1, 2).float() / 255, size=(side, side), mode="area")
    y = F.interpolate(torch.as_tensor(labels).unsqueeze(1).float(), size=(side, side), mode="nearest")
    return x, y.squeeze(1).long()
