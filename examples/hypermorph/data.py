"""Pairs of brain slices with their label maps: IXI from an .npz, neurite-OASIS from its archive."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from examples.common.arrays import data_root, read

ARRAYS = ("image", "seg", "label_names", "mid_slice", "train_idx", "val_idx", "test_idx")
ARCHIVE = "https://surfer.nmr.mgh.harvard.edu/ftp/data/neurite/data/neurite-oasis.2d.v1.0.tar"
ARCHIVE_MD5 = "c9ae5864f250c7e4b8d83a104e51ae8e"
IMAGE, LABELS = "slice_norm.nii.gz", "slice_seg24.nii.gz"


class Pair(NamedTuple):
    """Pairs of images (N, 1, H, W) in [0, 1] and of label maps (N, H, W); the network takes the first two."""

    moving: Tensor
    fixed: Tensor
    moving_labels: Tensor
    fixed_labels: Tensor


class Pairs(Dataset[Pair]):
    """Pairs of two subjects' images of the same slice.

    Args:
        images: of all subjects, bytes (subject, slice, H, W).
        labels: the same.
        index: moving subject, fixed subject and slice of each pair (pairs, 3).
    """

    def __init__(self, images: Tensor, labels: Tensor, index: Tensor) -> None:
        self.images, self.labels, self.index = images, labels, index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> Pair:
        return Pair(*(part[0] for part in self.__getitems__([number])))

    # The loader asks for a whole batch at once.
    def __getitems__(self, numbers: Sequence[int]) -> Pair:
        moving, fixed, place = self.index[list(numbers)].T
        images = [self.images[subject, place].unsqueeze(1).float() / 255 for subject in (moving, fixed)]
        labels = [self.labels[subject, place] for subject in (moving, fixed)]
        return Pair(*images, *labels)

    def all(self) -> Pair:
        """All pairs as one batch."""
        return self.__getitems__(range(len(self)))


def ordered_pairs(subjects: Tensor, slices: Tensor) -> Tensor:
    """Every pair of two different subjects, in both directions, at every slice (pairs, 3)."""
    pairs = torch.cartesian_prod(subjects, subjects, slices)
    return pairs[pairs[:, 0] != pairs[:, 1]]


def _as_is(batch: Pair) -> Pair:
    return batch


class _BrainPairs(L.LightningDataModule):
    """Loaders over the pairs within each part of the subjects; a subclass fills them in `setup`.

    Attributes:
        names: of the structures, the background first.
    """

    def __init__(self, batch_size: int, steps_per_epoch: int) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("steps_per_epoch", steps_per_epoch)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        self.batch_size, self.steps_per_epoch = batch_size, steps_per_epoch
        self.parts: dict[str, Pairs] = {}
        self.names: list[str] = []

    def train_dataloader(self) -> DataLoader[Pair]:
        pairs = self.parts["train"]
        sampler = RandomSampler(pairs, replacement=True, num_samples=self.batch_size * self.steps_per_epoch)
        return DataLoader(pairs, self.batch_size, sampler=sampler, collate_fn=_as_is)

    def val_dataloader(self) -> DataLoader[Pair]:
        return DataLoader(self.parts["val"], 32, collate_fn=_as_is)

    def test_dataloader(self) -> DataLoader[Pair]:
        return DataLoader(self.parts["test"], 32, collate_fn=_as_is)


class IXI(_BrainPairs):
    """Coronal slices of the IXI data set, from ixi_brain2d.npz.

    Args:
        root: The folder of the file. Without it, the one in the environment variable LIGHTNING_MIP_DATA.
        batch_size: Pairs per step.
        steps_per_epoch: An epoch is so many batches, drawn from all pairs.
        slices: Those that are trained on, of 16; None for all. Validation and test are on the middle one.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        batch_size: int = 4,
        steps_per_epoch: int = 100,
        slices: list[int] | None = None,
    ) -> None:
        super().__init__(batch_size, steps_per_epoch)
        self.root = data_root("ixi") if root is None else Path(root).expanduser()
        self.slices = slices

    def setup(self, stage: str | None = None) -> None:
        if self.parts:
            return
        file = read(self.root, "ixi_brain2d.npz")
        if missing := [name for name in ARRAYS if name not in file]:
            raise ValueError(
                f"ixi_brain2d.npz in root={str(self.root)!r} lacks {', '.join(missing)}; it holds {', '.join(file)}. "
                f"Expected {', '.join(ARRAYS)}."
            )
        images, labels = torch.as_tensor(file["image"]), torch.as_tensor(file["seg"])
        count = images.shape[1]
        slices = list(range(count)) if self.slices is None else self.slices
        if not slices or not all(0 <= place < count for place in slices):
            raise ValueError(f"slices={slices} must be numbers from 0 to {count - 1}, or None for all.")
        for part in ("train", "val", "test"):
            places = torch.tensor(slices if part == "train" else [int(file["mid_slice"])])
            index = ordered_pairs(torch.as_tensor(file[f"{part}_idx"]).long(), places)
            self.parts[part] = Pairs(images, labels, index)
        self.names = [str(name) for name in file["label_names"]]


class OASIS(_BrainPairs):
    """The coronal slice of the 414 subjects of neurite-OASIS, with 24 structures, from the archive's NIfTI files.

    Args:
        root: The folder with one folder per subject, as in the archive. Without it, the one in the environment variable
            LIGHTNING_MIP_DATA, else a cache folder of the user.
        batch_size: Pairs per step.
        steps_per_epoch: An epoch is so many batches, drawn from all pairs.
        image_size: Height and width to which slices of 192 x 160 are resized; None keeps theirs.
        seed: Fixes the split by subject, and the pairs that are evaluated.
        fractions: Shares of the subjects for validation and for testing.
        eval_pairs: At most so many pairs, drawn once, are validated and tested on.
        download: Fetch the archive into the folder if nothing is there, checked against its MD5.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        batch_size: int = 4,
        steps_per_epoch: int = 100,
        image_size: tuple[int, int] | None = (96, 80),
        seed: int = 0,
        fractions: tuple[float, float] = (0.1, 0.2),
        eval_pairs: int = 100,
        download: bool = True,
    ) -> None:
        super().__init__(batch_size, steps_per_epoch)
        val, test = fractions
        if not (val > 0 and test > 0 and val + test < 1):
            raise ValueError(
                f"fractions={tuple(fractions)} must be two positive shares of the subjects, for validation and for "
                "testing, that leave some to train on, for example (0.1, 0.2)."
            )
        self.root = data_root("neurite-oasis") if root is None else Path(root).expanduser()
        self.image_size, self.seed, self.fractions = image_size, seed, fractions
        self.eval_pairs, self.download = eval_pairs, download

    def prepare_data(self) -> None:
        if not subject_folders(self.root) and self.download:
            download_oasis(self.root)

    def setup(self, stage: str | None = None) -> None:
        if self.parts:
            return
        folders = subject_folders(self.root)
        if not folders:
            raise FileNotFoundError(_not_found(self.root))
        images, labels = (
            torch.stack([read_slice(folder / name, self.image_size) for folder in folders]).unsqueeze(1)
            for name in (IMAGE, LABELS)
        )
        self.names = ["background", *(f"label {number}" for number in range(1, int(labels.max()) + 1))]
        generator = np.random.default_rng(self.seed)
        order = torch.as_tensor(generator.permutation(len(folders)))
        sizes = [round(share * len(folders)) for share in self.fractions]
        if min(*sizes, len(folders) - sum(sizes)) < 2:
            raise ValueError(
                f"fractions={tuple(self.fractions)} of {len(folders)} subjects in root={str(self.root)!r} leave a part "
                "with less than the two subjects of a pair."
            )
        val, test, train = order.split([*sizes, len(folders) - sum(sizes)])
        for part, subjects in (("train", train), ("val", val), ("test", test)):
            index = ordered_pairs(subjects, torch.tensor([0]))
            if part != "train":
                index = index[torch.as_tensor(generator.permutation(len(index))[: self.eval_pairs])]
            self.parts[part] = Pairs(images, labels, index)


def subject_folders(root: Path) -> list[Path]:
    """The folders of subjects whose image and labels are there, in `root` or in the folder of the archive in it."""
    found = [path.parent for below in ("*", "*/*") for path in sorted(root.glob(f"{below}/{IMAGE}"))]
    return [folder for folder in found if (folder / LABELS).is_file()]


def read_slice(path: Path, size: tuple[int, int] | None) -> Tensor:
    """One slice, upright, as bytes (H, W): an image in [0, 1] times 255, resized linearly, or labels by nearest."""
    try:
        import nibabel
    except ImportError as error:
        raise ImportError(
            f"{path} is read by the package nibabel, which is not installed: pip install nibabel"
        ) from error
    values = np.asarray(nibabel.load(path).dataobj, np.float32).squeeze()
    if values.ndim != 2:
        raise ValueError(f"{path} holds an array of shape {values.shape}; expected one slice, (160, 192, 1).")
    labels = path.name == LABELS
    pixels = torch.as_tensor(np.rot90(values, -1).copy())[None, None]
    if size is not None:
        how = {"mode": "nearest-exact"} if labels else {"mode": "bilinear", "antialias": True}
        pixels = F.interpolate(pixels, size=tuple(size), **how)
    return (pixels if labels else 255 * pixels.clamp(0, 1)).round().to(torch.uint8)[0, 0]


def _not_found(root: Path) -> str:
    return (
        f"root={str(root)!r} holds no neurite-OASIS: no folders with {IMAGE} and {LABELS}. Unpack {ARCHIVE} there, "
        "give the folder that has them as root or in LIGHTNING_MIP_DATA, or set download=True where there is a network."
    )


def download_oasis(root: Path) -> None:
    """Fetch the archive of slices into `root`, checked against its MD5, and unpack it there."""
    try:
        import pooch
    except ImportError as error:
        raise ImportError(
            f"{_not_found(root)} Downloading needs the package pooch, which is not installed: pip install pooch"
        ) from error
    try:
        unpack = pooch.Untar(extract_dir=".")
        pooch.retrieve(ARCHIVE, f"md5:{ARCHIVE_MD5}", fname=ARCHIVE.rpartition("/")[2], path=root, processor=unpack)
    except Exception as error:  # pooch lets every kind of network error through
        raise RuntimeError(
            f"{ARCHIVE} could not be fetched into root={str(root)!r}: {error}. Without a network, unpack it into a "
            "folder and give that as root or in LIGHTNING_MIP_DATA."
        ) from error
