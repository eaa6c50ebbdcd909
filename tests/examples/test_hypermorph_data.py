"""The data modules of the HyperMorph example."""

from __future__ import annotations

import hashlib
import http.server
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from examples.hypermorph import data
from examples.hypermorph.data import IXI, OASIS, Pair, Pairs, ordered_pairs


def write_discs(folder: Path, subjects: int = 9, side: int = 24) -> None:
    """A file like ixi_brain2d.npz: in each subject two halves of a disc and a ring around them, a little elsewhere."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[:side, :side]
    images, labels = np.zeros((2, subjects, 3, side, side), np.uint8)
    for subject in range(subjects):
        for place in range(3):
            y, x = side / 2 + generator.uniform(-2, 2, 2)
            distance, radius = np.hypot(rows - y, columns - x), generator.uniform(3.5, 5.5)
            disc, ring = distance < radius, (distance >= radius) & (distance < radius + 3)
            labels[subject, place] = np.select([disc & (columns < x), disc, ring], [1, 2, 3])
            images[subject, place] = np.select([disc, ring], [80, 40])
    np.savez(
        folder / "ixi_brain2d.npz",
        image=images,
        seg=labels,
        mid_slice=1,
        label_names=["background", "Left-Disc", "Right-Disc", "Ring", "Nowhere"],
        train_idx=np.arange(4),
        val_idx=np.array([4, 5]),
        test_idx=np.array([6, 7, 8]),
    )


def ixi(folder: Path, **arguments: object) -> IXI:
    module = IXI(folder, **arguments)
    module.prepare_data()
    module.setup()
    return module


def test_pairs_are_all_ordered_pairs_of_different_subjects() -> None:
    found = ordered_pairs(torch.tensor([3, 5, 9]), torch.tensor([0, 7])).tolist()
    assert sorted(found) == sorted([a, b, k] for a in (3, 5, 9) for b in (3, 5, 9) if a != b for k in (0, 7))


def test_a_batch_equals_its_pairs() -> None:
    images, labels = torch.randint(0, 256, (2, 3, 2, 5, 4), dtype=torch.uint8)
    pairs = Pairs(images, labels, ordered_pairs(torch.arange(3), torch.arange(2)))
    batch, one = pairs.__getitems__([1, 4]), pairs[4]
    assert isinstance(batch, Pair)
    assert all(torch.equal(part[1], single) for part, single in zip(batch, one, strict=True))
    moving, fixed, place = pairs.index[4].tolist()
    assert torch.equal(one.moving, images[moving, place][None] / 255)
    assert torch.equal(one.fixed_labels, labels[fixed, place])


def test_ixi_keeps_subjects_apart_and_evaluates_on_the_middle_slice(tmp_path: Path) -> None:
    write_discs(tmp_path)
    parts = ixi(tmp_path).parts
    assert {name: len(pairs) for name, pairs in parts.items()} == {"train": 4 * 3 * 3, "val": 2, "test": 6}
    assert set(parts["test"].index[:, :2].flatten().tolist()) == {6, 7, 8}
    assert set(parts["train"].index[:, :2].flatten().tolist()) == {0, 1, 2, 3}
    assert parts["val"].index[:, 2].unique().tolist() == [1]
    assert parts["train"].index[:, 2].unique().tolist() == [0, 1, 2]


def test_an_epoch_is_as_long_as_it_is_told(tmp_path: Path) -> None:
    write_discs(tmp_path)
    module = ixi(tmp_path, batch_size=5, steps_per_epoch=11, slices=[2])
    batches = list(module.train_dataloader())
    assert [len(batch.moving) for batch in batches] == [5] * 11
    assert batches[0].moving.shape == (5, 1, 24, 24)
    assert batches[0].moving.max() <= 1
    assert sum(len(batch.moving) for batch in module.test_dataloader()) == 6


def test_ixi_is_found_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_discs(tmp_path)
    monkeypatch.setenv("LIGHTNING_MIP_DATA", str(tmp_path))
    assert ixi(None).names[3] == "Ring"


@pytest.mark.parametrize("slices", [[], [0, 3], [-1]])
def test_slices_that_are_not_there_are_refused(tmp_path: Path, slices: list[int]) -> None:
    write_discs(tmp_path)
    with pytest.raises(ValueError, match="slices") as error:
        ixi(tmp_path, slices=slices)
    assert str(error.value) == f"slices={slices} must be numbers from 0 to 2, or None for all."


def test_a_file_without_all_arrays_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "ixi_brain2d.npz", image=np.zeros((2, 1, 4, 4)), seg=np.zeros((2, 1, 4, 4)))
    with pytest.raises(ValueError, match="lacks") as error:
        ixi(tmp_path)
    assert str(error.value) == (
        f"ixi_brain2d.npz in root={str(tmp_path)!r} lacks label_names, mid_slice, train_idx, val_idx, test_idx; "
        "it holds image, seg. Expected image, seg, label_names, mid_slice, train_idx, val_idx, test_idx."
    )


@pytest.mark.parametrize("name", ["batch_size", "steps_per_epoch"])
def test_impossible_sizes_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}=0 must be at least 1.$"):
        IXI(**{name: 0})


# --- neurite-OASIS


def write_subjects(folder: Path, count: int = 12) -> None:
    """Folders as in the archive: slices of 160 x 192 x 1, the first axis from side to side, the second downwards."""
    generator = np.random.default_rng(0)
    for subject in range(count):
        place = folder / f"OASIS_OAS1_{subject:04d}_MR1"
        place.mkdir(parents=True)
        labels = np.zeros((160, 192, 1), np.int16)
        labels[40:120, 12 : 90 - subject] = 2  # in the upper half
        labels[40:60, 150:180] = 24
        image = np.where(labels == 2, 0.8, 0.1) + generator.uniform(0, 0.1, labels.shape)
        nibabel.save(nibabel.Nifti1Image(image.astype(np.float32), np.eye(4)), place / data.IMAGE)
        nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), place / data.LABELS)


def oasis(folder: Path, **arguments: object) -> OASIS:
    module = OASIS(folder, **arguments)
    module.prepare_data()
    module.setup()
    return module


def test_oasis_is_read_upright_and_resized(tmp_path: Path) -> None:
    write_subjects(tmp_path, 7)
    module = oasis(tmp_path, fractions=(0.3, 0.3))
    pairs = module.parts["train"]
    assert pairs.images.shape == pairs.labels.shape == (7, 1, 96, 80)
    assert len(module.names) == 25
    assert pairs.labels.unique().tolist() == [0, 2, 24]
    pair = pairs.all()
    large = pair.moving_labels == 2
    assert large[:, :48].sum() > 0
    assert large[:, 50:].sum() == 0
    assert float(pair.moving[:, 0][large].mean()) == pytest.approx(0.85, abs=0.03)
    # Twenty of 160 columns, thirty of 192 rows, at half the size.
    assert (pair.moving_labels == 24).sum((1, 2)).tolist() == [10 * 15] * len(pair.moving)


def test_oasis_may_keep_its_size(tmp_path: Path) -> None:
    write_subjects(tmp_path, 7)
    assert oasis(tmp_path, fractions=(0.3, 0.3), image_size=None).parts["val"].images.shape[-2:] == (192, 160)


def test_oasis_is_split_by_subject_and_seed(tmp_path: Path) -> None:
    write_subjects(tmp_path)

    def subjects(seed: int) -> dict[str, set[int]]:
        parts = oasis(tmp_path, seed=seed, fractions=(0.2, 0.25), image_size=(24, 20)).parts
        return {name: set(pairs.index[:, :2].flatten().tolist()) for name, pairs in parts.items()}

    first = subjects(0)
    assert {name: len(found) for name, found in first.items()} == {"train": 7, "val": 2, "test": 3}
    assert set.union(*first.values()) == set(range(12))
    assert first == subjects(0)
    assert first != subjects(1)


def test_at_most_so_many_pairs_of_oasis_are_evaluated(tmp_path: Path) -> None:
    write_subjects(tmp_path)
    sizes = {"fractions": (0.2, 0.4), "image_size": (24, 20)}
    few, again = (oasis(tmp_path, eval_pairs=4, **sizes).parts["test"].index for _ in range(2))
    assert torch.equal(few, again)
    assert len(few) == 4
    assert len(oasis(tmp_path, eval_pairs=100, **sizes).parts["test"]) == 5 * 4


@pytest.mark.parametrize("fractions", [(0.0, 0.2), (0.5, 0.5), (0.2, -0.1)])
def test_fractions_that_leave_nothing_are_refused(fractions: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="fractions") as error:
        OASIS(fractions=fractions)
    assert str(error.value) == (
        f"fractions={fractions} must be two positive shares of the subjects, for validation and for testing, that "
        "leave some to train on, for example (0.1, 0.2)."
    )


def test_parts_without_a_pair_are_refused(tmp_path: Path) -> None:
    write_subjects(tmp_path, 5)
    with pytest.raises(ValueError, match=r"fractions=\(0\.1, 0\.2\) of 5 subjects in root=.* leave a part with less"):
        oasis(tmp_path)


def test_an_archive_that_is_not_there_is_named_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error:
        oasis(tmp_path, download=False)
    assert str(error.value) == (
        f"root={str(tmp_path)!r} holds no neurite-OASIS: no folders with slice_norm.nii.gz and slice_seg24.nii.gz. "
        f"Unpack {data.ARCHIVE} there, give the folder that has them as root or in LIGHTNING_MIP_DATA, or set "
        "download=True where there is a network."
    )


def test_a_volume_is_refused(tmp_path: Path) -> None:
    path = tmp_path / data.IMAGE
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6), np.float32), np.eye(4)), path)
    with pytest.raises(ValueError, match="shape") as error:
        data.read_slice(path, None)
    assert str(error.value) == f"{path} holds an array of shape (4, 5, 6); expected one slice, (160, 192, 1)."


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A server of this machine that has a small archive, under the address of the real one."""
    write_subjects(tmp_path / "archive", 7)
    path = tmp_path / "served" / "neurite-oasis.2d.v1.0.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as archive:
        archive.add(tmp_path / "archive", arcname="neurite-oasis.2d.v1.0")
    handler = partial(_Quiet, directory=str(path.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setattr(data, "ARCHIVE", f"http://127.0.0.1:{server.server_port}/{path.name}")
        monkeypatch.setattr(data, "ARCHIVE_MD5", hashlib.md5(path.read_bytes()).hexdigest())
        yield path
        server.shutdown()
        thread.join()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Print nothing."""


def test_a_missing_archive_is_fetched_checked_and_unpacked(tmp_path: Path, served: Path) -> None:
    root = tmp_path / "new"
    assert len(data.subject_folders(root)) == 0
    module = oasis(root, fractions=(0.3, 0.3))
    assert len(data.subject_folders(root)) == 7
    assert module.parts["test"].images.shape == (7, 1, 96, 80)
    served.unlink()  # what is there is not fetched again
    assert len(oasis(root, fractions=(0.3, 0.3)).parts) == 3


def test_a_damaged_archive_is_refused_with_the_way_out(
    tmp_path: Path, served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "ARCHIVE_MD5", "c9ae5864f250c7e4b8d83a104e51ae8e")
    with pytest.raises(RuntimeError, match=r"could not be fetched into root=.*hash.*LIGHTNING_MIP_DATA\.$") as error:
        OASIS(tmp_path / "new").prepare_data()
    assert str(error.value).startswith(data.ARCHIVE)
    assert len(data.subject_folders(tmp_path / "new")) == 0
