"""The data modules and the network of the Bayesian digits example."""

import gzip
from pathlib import Path

import numpy as np
import pooch
import pytest
import torch

from examples.bayesian_digits import data
from examples.bayesian_digits.data import MNIST, MNIST_MD5, Digits
from examples.bayesian_digits.network import ConvNet


def arrays(size: int = 12, train: int = 40, test: int = 10) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        "x_train": generator.integers(0, 256, (train, size, size), dtype=np.uint8),
        "y_train": (np.arange(train) % 10).astype(np.uint8),
        "x_test": generator.integers(0, 256, (test, size, size), dtype=np.uint8),
        "y_test": (np.arange(test) % 10).astype(np.uint8),
    }


def write_idx(folder: Path, content: dict[str, np.ndarray], zipped: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(MNIST_MD5, content.values(), strict=True):
        raw = bytes((0, 0, 8, array.ndim)) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()
        if zipped:
            (folder / name).write_bytes(gzip.compress(raw))
        else:
            (folder / name.removesuffix(".gz")).write_bytes(raw)


def ready(module: MNIST | Digits) -> MNIST | Digits:
    module.prepare_data()
    module.setup()
    return module


def test_digits_are_scaled_and_split_without_overlap() -> None:
    digits = ready(Digits(batch_size=32))
    x, y = next(iter(digits.train_dataloader()))
    assert x.shape == (32, 1, 8, 8)
    assert x.dtype == torch.float32
    assert y.dtype == torch.long
    assert x.min() == 0
    assert x.max() == 1
    assert sum(len(part) for part in digits.parts.values()) == 1797
    counts = torch.bincount(digits.parts["test"].labels)
    assert counts.max() - counts.min() <= 3


def test_digits_split_depends_on_the_seed_alone() -> None:
    first, again, other = (ready(Digits(seed=seed)).parts["test"].images for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_batches_equal_single_items() -> None:
    part = ready(Digits()).parts["val"]
    x, y = part.__getitems__([0, 5])
    assert torch.equal(x[1], part[5][0])
    assert y[1] == part[5][1]


def test_shifted_images_keep_their_pixels_within_the_reach() -> None:
    images = torch.zeros(200, 8, 8, dtype=torch.uint8)
    images[:, 3, 4] = 7
    _, rows, columns = data.shifted(images, 1).nonzero(as_tuple=True)
    assert len(rows) == 200
    assert set(rows.tolist()) == {2, 3, 4}
    assert set(columns.tolist()) == {3, 4, 5}


def test_only_training_images_are_shifted() -> None:
    digits = ready(Digits(shift=2))
    assert {name: part.shift for name, part in digits.parts.items()} == {"train": 2, "val": 0, "test": 0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shift": -1}, "shift=-1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"val_fraction": 1.5}, "val_fraction=1.5"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "leave nothing to train on"),
    ],
)
def test_digits_refuse_impossible_arguments(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Digits(**arguments)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("below", ["", "MNIST/raw"])
def test_idx_files_are_read_back(tmp_path: Path, zipped: bool, below: str) -> None:
    content = arrays()
    write_idx(tmp_path / below, content, zipped)
    mnist = ready(MNIST(tmp_path, batch_size=4, val_size=8, download=False))
    assert torch.equal(mnist.parts["test"].images, torch.as_tensor(content["x_test"]))
    assert {name: len(part) for name, part in mnist.parts.items()} == {"train": 32, "val": 8, "test": 10}
    x, y = next(iter(mnist.test_dataloader()))
    assert x.shape == (4, 1, 12, 12)
    assert y.tolist() == [0, 1, 2, 3]
    assert torch.allclose(x[0, 0] * 255, torch.as_tensor(content["x_test"][0]).float())


def test_npz_as_path_in_a_folder_and_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = {"train_idx": np.arange(5, 40), "val_idx": np.arange(5)}
    np.savez(tmp_path / "mnist.npz", **arrays(), **split)
    monkeypatch.setenv("LIGHTNING_MIP_DATA", str(tmp_path))
    for root in (tmp_path / "mnist.npz", str(tmp_path), None):
        mnist = ready(MNIST(root, download=False))
        assert mnist.parts["val"].labels.tolist() == [0, 1, 2, 3, 4]
        assert len(mnist.parts["train"]) == 35


def test_without_root_and_environment_a_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIGHTNING_MIP_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert MNIST().root == tmp_path / "lightning_mip" / "mnist"


@pytest.mark.parametrize("size", [4, 6, 24])
def test_images_are_resized(tmp_path: Path, size: int) -> None:
    content = arrays()
    np.savez(tmp_path / "mnist.npz", **content)
    mnist = ready(MNIST(tmp_path, image_size=size, val_size=4))
    assert mnist.parts["train"].images.shape == (36, size, size)
    if size == 6:
        expected = content["x_test"].reshape(10, 6, 2, 6, 2).mean((2, 4))
        assert np.abs(mnist.parts["test"].images.numpy() - expected).max() <= 0.5


def test_the_validation_split_is_disjoint_and_seeded(tmp_path: Path) -> None:
    np.savez(tmp_path / "mnist.npz", **arrays())
    splits = [ready(MNIST(tmp_path, val_size=7, seed=seed))._split(arrays()) for seed in (0, 0, 1)]
    assert sorted(np.concatenate(splits[0])) == list(range(40))
    assert np.array_equal(splits[0][1], splits[1][1])
    assert not np.array_equal(splits[0][1], splits[2][1])


def test_missing_files_are_named_with_the_way_out(tmp_path: Path) -> None:
    write_idx(tmp_path, arrays(), zipped=False)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"missing: t10k-labels-idx1-ubyte\. .*LIGHTNING_MIP_DATA") as error:
        ready(MNIST(tmp_path, download=False))
    assert str(tmp_path) in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"no\.npz.*does not exist.*x_train"):
        ready(MNIST(tmp_path / "no.npz"))


def test_only_missing_files_are_fetched_with_their_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, str] = {}

    def retrieve(url: str, known_hash: str, fname: str, path: Path) -> None:
        asked[url] = known_hash
        write_idx(Path(path), arrays(), zipped=True)

    write_idx(tmp_path, arrays(), zipped=True)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    monkeypatch.setattr(pooch, "retrieve", retrieve)
    ready(MNIST(tmp_path, val_size=4))
    name = "t10k-labels-idx1-ubyte.gz"
    assert asked == {data.MIRROR + name: f"md5:{MNIST_MD5[name]}"}


def test_a_failed_download_tells_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    def retrieve(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    with pytest.raises(RuntimeError, match=r"no route to host.*LIGHTNING_MIP_DATA"):
        MNIST(tmp_path).prepare_data()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[:-3], "announces 40 x 12 x 12 values and holds 5757"),
        (lambda raw: b"\x00\x00\x0d\x03" + raw[4:], "expected '00 00 08 03'"),
        (lambda raw: raw[:3], "is not an IDX file"),
        (lambda raw: raw[:6], "cut off or damaged"),
    ],
)
def test_damaged_idx_files_are_refused(tmp_path: Path, damage: object, message: str) -> None:
    write_idx(tmp_path, arrays(), zipped=False)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        ready(MNIST(tmp_path, val_size=4))


def test_a_damaged_gz_file_is_refused(tmp_path: Path) -> None:
    write_idx(tmp_path, arrays(), zipped=True)
    path = tmp_path / "train-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"is not a whole \.gz file"):
        ready(MNIST(tmp_path, val_size=4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_test": None}, "lacks x_test; it holds"),
        ({"x_train": np.zeros((40, 12, 12))}, "dtype float64; expected"),
        ({"y_train": np.zeros(39, np.uint8)}, "40 images x_train but labels y_train of shape"),
        ({"y_test": np.full(10, 12, np.uint8)}, "runs from 12 to 12; expected 0 to 9"),
        ({"train_idx": np.arange(3)}, "holds train_idx alone"),
        ({"train_idx": np.arange(3), "val_idx": np.array([40])}, "val_idx .* must be indices into the 40 images"),
    ],
)
def test_wrong_npz_files_are_refused(tmp_path: Path, change: dict[str, np.ndarray | None], message: str) -> None:
    content = {key: value for key, value in {**arrays(), **change}.items() if value is not None}
    np.savez(tmp_path / "mnist.npz", **content)
    with pytest.raises(ValueError, match=message):
        ready(MNIST(tmp_path, val_size=4))


def test_a_validation_part_larger_than_the_data_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "mnist.npz", **arrays())
    with pytest.raises(ValueError, match="val_size=5000 must lie between 1 and 39"):
        ready(MNIST(tmp_path))


def test_an_image_size_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="image_size=2"):
        MNIST("anywhere", image_size=2)


@pytest.mark.parametrize("size", [8, 14, 28])
def test_the_network_takes_several_sizes(size: int) -> None:
    network = ConvNet(width=4)
    assert network(torch.rand(2, 1, size, size)).shape == (2, 10)
