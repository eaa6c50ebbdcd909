"""Handwritten digits: the 8 x 8 ones that scikit-learn ships, and MNIST from IDX files or an .npz."""

from __future__ import annotations

import gzip
import math
import os
from pathlib import Path

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from examples.common.arrays import data_root

CLASSES = 10
MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
MNIST_MD5 = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}


class Images(Dataset[tuple[Tensor, Tensor]]):
    """Images (N, H, W) and labels (N,) held in memory; gives ((1, H, W) in [0, 1], label).

    Args:
        images: The values 0 to `highest`.
        labels: The classes.
        highest: The value that becomes 1.
        shift: Move each image at random by up to so many pixels, each time it is asked for.
    """

    def __init__(self, images: Tensor, labels: Tensor, highest: float, shift: int = 0) -> None:
        self.images, self.labels, self.highest, self.shift = images, labels, highest, shift

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = self.__getitems__([index])
        return x[0], y[0]

    # The loader asks for a whole batch at once: one indexing call is some twenty times faster than collating images.
    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        x = self.images[indices]
        x = shifted(x, self.shift) if self.shift else x
        return x.unsqueeze(1).float() / self.highest, self.labels[indices]

    def all(self) -> tuple[Tensor, Tensor]:
        """All images and labels as one batch."""
        return self.__getitems__(list(range(len(self))))


def shifted(images: Tensor, pixels: int) -> Tensor:
    """Move each image (N, H, W) by its own random number of pixels in both directions, with zeros at the edges."""
    count, height, width = images.shape
    padded = F.pad(images, (pixels,) * 4)
    down, right = torch.randint(0, 2 * pixels + 1, (2, count, 1))
    rows, columns = down + torch.arange(height), right + torch.arange(width)
    return padded[torch.arange(count).view(-1, 1, 1), rows.unsqueeze(2), columns.unsqueeze(1)]


def _as_is(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch


class _ImagesDataModule(L.LightningDataModule):
    """Loaders over the three parts; a subclass fills them in `setup`."""

    def __init__(self, batch_size: int, seed: int, shift: int) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1.")
        if shift < 0:
            raise ValueError(f"shift={shift} must be a number of pixels, 0 for images that stay where they are.")
        self.batch_size, self.seed, self.shift = batch_size, seed, shift
        self.parts: dict[str, Images] = {}

    def _loader(self, part: str, shuffle: bool = False) -> DataLoader[tuple[Tensor, Tensor]]:
        return DataLoader(self.parts[part], self.batch_size, shuffle=shuffle, collate_fn=_as_is)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return self._loader("test")


class Digits(_ImagesDataModule):
    """The 1797 digits of 8 x 8 pixels inside scikit-learn.

    Args:
        batch_size: Images per batch.
        seed: Fixes the split, which is balanced over the classes.
        val_fraction: Share of the images for validation.
        test_fraction: Share of the images for testing.
        shift: Training images are moved at random by up to so many pixels.
    """

    def __init__(
        self,
        batch_size: int = 64,
        seed: int = 0,
        val_fraction: float = 0.15,
        test_fraction: float = 0.2,
        shift: int = 1,
    ) -> None:
        super().__init__(batch_size, seed, shift)
        for name, value in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
            if not 0 < value < 1:
                raise ValueError(f"{name}={value} must lie between 0 and 1, for example {name}=0.2.")
        if val_fraction + test_fraction >= 1:
            raise ValueError(
                f"val_fraction={val_fraction} and test_fraction={test_fraction} leave nothing to train on: "
                "their sum must stay below 1."
            )
        self.val_fraction, self.test_fraction = val_fraction, test_fraction

    def setup(self, stage: str | None = None) -> None:
        if self.parts:
            return
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        images, labels = load_digits().images, load_digits().target
        rest, test = train_test_split(
            np.arange(len(labels)), test_size=self.test_fraction, stratify=labels, random_state=self.seed
        )
        share = self.val_fraction / (1 - self.test_fraction)
        train, val = train_test_split(rest, test_size=share, stratify=labels[rest], random_state=self.seed)
        for part, index in (("train", train), ("val", val), ("test", test)):
            self.parts[part] = Images(
                torch.as_tensor(images[index]).to(torch.uint8),
                torch.as_tensor(labels[index]).long(),
                highest=16,
                shift=self.shift if part == "train" else 0,
            )


class MNIST(_ImagesDataModule):
    """MNIST, or any set in its format.

    Args:
        root: A folder with the four IDX files (plain or .gz) or a `mnist.npz`, or the path of an .npz itself. Without
            it, the folder in the environment variable LIGHTNING_MIP_DATA, else a cache folder of the user.
        batch_size: Images per batch.
        image_size: Side to which images are averaged down (or interpolated up); None keeps theirs.
        seed: Fixes the validation split.
        val_size: Training images set aside for validation where the data bring no split of their own.
        download: Fetch missing IDX files into the folder, each checked against its known MD5.
        shift: Training images are moved at random by up to so many pixels.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        batch_size: int = 128,
        image_size: int | None = None,
        seed: int = 0,
        val_size: int = 5000,
        download: bool = True,
        shift: int = 0,
    ) -> None:
        super().__init__(batch_size, seed, shift)
        if image_size is not None and image_size < 4:
            raise ValueError(f"image_size={image_size} must be at least 4, or None to keep the images' own size.")
        self.root = data_root("mnist") if root is None else Path(root).expanduser()
        self.image_size, self.val_size, self.download = image_size, val_size, download

    def prepare_data(self) -> None:
        if find_mnist(self.root) is None:
            if not self.download:
                raise FileNotFoundError(_not_found(self.root))
            download_mnist(self.root)

    def setup(self, stage: str | None = None) -> None:
        if self.parts:
            return
        found = find_mnist(self.root)
        if found is None:
            raise FileNotFoundError(_not_found(self.root))
        arrays = read_npz(found) if found.is_file() else read_idx_folder(found)
        train, val = self._split(arrays)
        for part, source, index in (("train", "train", train), ("val", "train", val), ("test", "test", None)):
            images, labels = arrays[f"x_{source}"], arrays[f"y_{source}"]
            if index is not None:
                images, labels = images[index], labels[index]
            self.parts[part] = Images(
                resize(torch.as_tensor(images), self.image_size),
                torch.as_tensor(labels).long(),
                highest=255,
                shift=self.shift if part == "train" else 0,
            )

    def _split(self, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        if "train_idx" in arrays:
            return arrays["train_idx"], arrays["val_idx"]
        count = len(arrays["y_train"])
        if not 0 < self.val_size < count:
            raise ValueError(
                f"val_size={self.val_size} must lie between 1 and {count - 1}: the data hold {count} training images."
            )
        order = np.random.default_rng(self.seed).permutation(count)
        return order[self.val_size :], order[: self.val_size]


def find_mnist(root: Path) -> Path | None:
    """The .npz file, or the folder that holds all four IDX files, or None."""
    if root.suffix == ".npz":
        return root if root.is_file() else None
    if (root / "mnist.npz").is_file():
        return root / "mnist.npz"
    # torchvision keeps the files in MNIST/raw.
    folders = (root, root / "MNIST" / "raw")
    return next((folder for folder in folders if not _missing_files(folder)), None)


def _missing_files(folder: Path) -> list[str]:
    return [name for name in MNIST_MD5 if not _idx_path(folder, name)]


def _idx_path(folder: Path, name: str) -> Path | None:
    candidates = (folder / name.removesuffix(".gz"), folder / name)
    return next((path for path in candidates if path.is_file()), None)


def _not_found(root: Path) -> str:
    if root.suffix == ".npz":
        return f"root={str(root)!r} does not exist. Give an .npz with x_train, y_train, x_test and y_test."
    missing = ", ".join(name.removesuffix(".gz") for name in _missing_files(root))
    return (
        f"root={str(root)!r} holds no MNIST: no mnist.npz, and of the IDX files (plain or .gz) these are missing: "
        f"{missing}. Put them there, give the folder that has them as root or in LIGHTNING_MIP_DATA, "
        "or set download=True where there is a network."
    )


def download_mnist(root: Path) -> None:
    """Fetch the IDX files that are missing in `root`, each checked against its MD5."""
    if root.suffix == ".npz":
        raise FileNotFoundError(_not_found(root))
    try:
        import pooch
    except ImportError as error:
        raise ImportError(
            f"{_not_found(root)} Downloading needs the package pooch, which is not installed: pip install pooch"
        ) from error

    for name in _missing_files(root):
        try:
            pooch.retrieve(MIRROR + name, known_hash=f"md5:{MNIST_MD5[name]}", fname=name, path=root)
        except Exception as error:  # pooch lets every kind of network error through
            raise RuntimeError(
                f"{MIRROR + name} could not be fetched into root={str(root)!r}: {error}. Without a network, copy the "
                "four IDX files (or a mnist.npz) into a folder and give it as root or in LIGHTNING_MIP_DATA."
            ) from error


def read_idx_folder(folder: Path) -> dict[str, np.ndarray]:
    """The four IDX files of a folder as x_train, y_train, x_test, y_test."""
    keys = ("x_train", "y_train", "x_test", "y_test")
    paths = {key: _idx_path(folder, name) for key, name in zip(keys, MNIST_MD5, strict=True)}
    arrays = {key: read_idx(path, ndim=3 if key.startswith("x") else 1) for key, path in paths.items() if path}
    _check_arrays(arrays, str(folder))
    return arrays


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """One IDX file of unsigned bytes, plain or .gz: magic 0, 0, 8, ndim, then big-endian sizes, then the values."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            content = file.read()
    except (gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{path} is not a whole .gz file ({error}). Delete it and fetch it again.") from error
    expected = bytes((0, 0, 8, ndim))
    if content[:4] != expected:
        raise ValueError(
            f"{path} is not an IDX file of {ndim}-dimensional unsigned bytes: it starts with {content[:4].hex(' ')!r}, "
            f"expected {expected.hex(' ')!r}. Delete it and fetch it again."
        )
    header = 4 + 4 * ndim
    sizes = [int.from_bytes(content[i : i + 4], "big") for i in range(4, header, 4)]
    values = np.frombuffer(content, np.uint8, offset=min(len(content), header))
    if len(content) < header or values.size != math.prod(sizes):
        raise ValueError(
            f"{path} announces {' x '.join(map(str, sizes))} values and holds {values.size}: it is cut off or damaged. "
            "Delete it and fetch it again."
        )
    return values.reshape(sizes).copy()


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """x_train, y_train, x_test, y_test and, where both are there, train_idx and val_idx."""
    with np.load(path) as file:
        missing = [key for key in ("x_train", "y_train", "x_test", "y_test") if key not in file]
        if missing:
            raise ValueError(
                f"{path} lacks {', '.join(missing)}; it holds {', '.join(file.files)}. "
                "Expected x_train, y_train, x_test, y_test and optionally train_idx, val_idx."
            )
        split = [key for key in ("train_idx", "val_idx") if key in file]
        if len(split) == 1:
            raise ValueError(f"{path} holds {split[0]} alone. Give both train_idx and val_idx, or neither.")
        arrays = {key: file[key] for key in ("x_train", "y_train", "x_test", "y_test", *split)}
    _check_arrays(arrays, str(path))
    return arrays


def _check_arrays(arrays: dict[str, np.ndarray], source: str) -> None:
    for part in ("train", "test"):
        images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if images.ndim != 3 or images.dtype != np.uint8:
            raise ValueError(
                f"x_{part} of {source} has shape {images.shape} and dtype {images.dtype}; expected (N, H, W) of uint8."
            )
        if labels.shape != images.shape[:1]:
            raise ValueError(
                f"{source} holds {len(images)} images x_{part} but labels y_{part} of shape {labels.shape}."
            )
        if labels.size and not 0 <= labels.min() <= labels.max() < CLASSES:
            raise ValueError(
                f"y_{part} of {source} runs from {labels.min()} to {labels.max()}; expected 0 to {CLASSES - 1}."
            )
    for key in ("train_idx", "val_idx"):
        index = arrays.get(key)
        if index is not None and not (index.size and 0 <= index.min() <= index.max() < len(arrays["y_train"])):
            raise ValueError(f"{key} of {source} must be indices into the {len(arrays['y_train'])} images of x_train.")


def resize(images: Tensor, size: int | None) -> Tensor:
    """Images (N, H, W) of bytes at `size` x `size`, by area averages downwards and bilinearly upwards."""
    if size is None or images.shape[-2:] == (size, size):
        return images
    down = size <= min(images.shape[-2:])
    options = {"mode": "area"} if down else {"mode": "bilinear", "align_corners": False}
    # In pieces: all of MNIST as floats at once would take eight times the memory of the result.
    pieces = [F.interpolate(piece.unsqueeze(1).float(), size=(size, size), **options) for piece in images.split(4096)]
    return torch.cat([piece.squeeze(1).round().to(torch.uint8) for piece in pieces])
