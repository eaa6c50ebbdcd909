"""Splitting a batch of any structure."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import Dataset

from lightning_mip.batches import batch_size, copied, split_batch

X = torch.arange(10.0).reshape(5, 2)
Y = torch.arange(5)


class Pair(NamedTuple):
    """A named batch."""

    image: Tensor
    label: Tensor


@dataclass(frozen=True)
class Record:
    """A batch with attributes."""

    image: Tensor


@dataclass
class Meta:
    """Of a sample."""

    id: int


@dataclass
class Holder:
    """Of records."""

    records: list[Record]


def plain(item: Any) -> Any:
    """Tensors as lists, for comparison."""
    if isinstance(item, (Tensor, np.ndarray)):
        return item.tolist()
    if isinstance(item, dict):
        return {key: plain(value) for key, value in item.items()}
    if isinstance(item, (tuple, list)):
        return type(item)(*map(plain, item)) if hasattr(item, "_fields") else type(item)(map(plain, item))
    return item


@pytest.mark.parametrize(
    ("batch", "first", "second"),
    [
        pytest.param(X, X[:2], X[2:], id="tensor"),
        pytest.param((X, Y), (X[:2], Y[:2]), (X[2:], Y[2:]), id="tuple"),
        pytest.param([X, Y], [X[:2], Y[:2]], [X[2:], Y[2:]], id="list"),
        pytest.param(Pair(X, Y), Pair(X[:2], Y[:2]), Pair(X[2:], Y[2:]), id="named tuple"),
        pytest.param({"x": X, "y": Y}, {"x": X[:2], "y": Y[:2]}, {"x": X[2:], "y": Y[2:]}, id="mapping"),
        pytest.param(OrderedDict(x=X), {"x": X[:2]}, {"x": X[2:]}, id="ordered mapping"),
        pytest.param(
            ({"x": [X, X]}, (Y,)), ({"x": [X[:2], X[:2]]}, (Y[:2],)), ({"x": [X[2:], X[2:]]}, (Y[2:],)), id="nested"
        ),
        pytest.param([X, [1, 2, 3, 4, 5]], [X[:2], [1, 2]], [X[2:], [3, 4, 5]], id="list of numbers"),
        pytest.param((X, Y.numpy()), (X[:2], Y.numpy()[:2]), (X[2:], Y.numpy()[2:]), id="array"),
        pytest.param([X, list(Y)], [X[:2], list(Y[:2])], [X[2:], list(Y[2:])], id="list of scalars"),
        pytest.param(
            [X, [{"id": k} for k in range(5)]],
            [X[:2], [{"id": 0}, {"id": 1}]],
            [X[2:], [{"id": 2}, {"id": 3}, {"id": 4}]],
            id="list of mappings",
        ),
        pytest.param([X, torch.tensor(7.0)], [X[:2], torch.tensor(7.0)], [X[2:], torch.tensor(7.0)], id="a scalar"),
    ],
)
def test_every_structure_keeps_its_form(batch: Any, first: Any, second: Any) -> None:
    (one, size_one), (two, size_two) = split_batch(batch, 2)
    assert (size_one, size_two) == (2, 3)
    assert plain(one) == plain(first)
    assert plain(two) == plain(second)


def test_records_without_tensors_are_split_with_the_batch_or_go_to_every_part() -> None:
    metas = [Meta(k) for k in range(5)]
    parts = [part for part, _ in split_batch({"x": X, "of": metas, "site": metas[0], "kind": Meta}, 2)]
    assert [part["of"] for part in parts] == [metas[:2], metas[2:]]
    assert [(part["site"], part["kind"]) for part in parts] == [(metas[0], Meta)] * 2


def test_records_one_per_sample_are_split_as_a_list() -> None:
    records = [Record(x) for x in X]
    one, two = (part for part, _ in split_batch({"of": [records], "x": X}, 2))
    assert one["of"] == [records[:2]]
    assert two["of"] == [records[2:]]


@pytest.mark.parametrize("batch", [[Record(X), Record(X)], (X, [Record(X), Record(X)]), Holder([Record(X)])])
def test_records_that_may_hold_many_samples_each_are_refused(batch: Any) -> None:
    with pytest.raises(TypeError, match=r"batch.*\[0\] is a Record"):
        split_batch(batch, 2)


def test_strings_of_the_batch_are_split_and_others_go_to_every_part() -> None:
    names = ["a", "b", "c", "d", "e"]
    parts = [part for part, _ in split_batch({"x": X, "names": names, "site": "abcde", "flag": None}, 2)]
    assert [part["names"] for part in parts] == [["a", "b"], ["c", "d", "e"]]
    assert [part["site"] for part in parts] == ["abcde"] * 2
    assert [part["flag"] for part in parts] == [None] * 2


@pytest.mark.parametrize(("size", "parts", "sizes"), [(5, 1, [5]), (5, 5, [1] * 5), (7, 3, [2, 2, 3]), (8, 4, [2] * 4)])
def test_parts_are_nearly_equal_and_hold_every_sample_once(size: int, parts: int, sizes: list[int]) -> None:
    split = split_batch(torch.arange(size), parts)
    assert [n for _, n in split] == sizes
    assert torch.cat([part for part, _ in split]).tolist() == list(range(size))


def test_a_part_is_a_view() -> None:
    (part, _), _ = split_batch(X, 2)
    assert part.untyped_storage().data_ptr() == X.untyped_storage().data_ptr()


class Graph:
    """Of a library whose batches are no containers."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def clone(self) -> Graph:
        return Graph(self.x.clone())


class Ordinary:
    """Of a class of somebody's own."""

    def __init__(self, x: Any, **others: Any) -> None:
        self.x = x
        self.__dict__.update(others)


class Delegating(Ordinary):
    """Has the attributes of another object, which it needs to have itself."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.other, name)


class Slotted:
    """Has no ``__dict__``."""

    __slots__ = ("x",)

    def __init__(self, x: Tensor) -> None:
        self.x = x


class AttrDict(dict[str, Any]):
    """A mapping whose items are its attributes, and whose others are errors of its own."""

    __getattr__ = dict.__getitem__


class DotDict(dict[str, Any]):
    """A mapping that has None for every attribute."""

    __getattr__ = dict.get


class ByName:
    """No mapping, with None for every attribute."""

    def __getattr__(self, name: str) -> None:
        return None


@pytest.mark.parametrize("kind", [AttrDict, DotDict])
def test_a_mapping_may_have_its_items_as_attributes(kind: Any) -> None:
    batch = kind(x=X.clone(), y=Y, of=ByName())
    copy = copied(batch)
    copy.x.zero_()
    assert type(copy) is kind
    assert torch.equal(batch.x, X)
    assert [plain(part.x) for part, _ in split_batch(batch, 2)] == [plain(X[:2]), plain(X[2:])]


def test_what_is_written_to_a_copy_does_not_reach_the_batch() -> None:
    batch: dict[str, Any] = {
        "pair": Pair(X.clone(), Y.clone()),
        "array": np.zeros(2),
        "graph": Graph(X.clone()),
        "names": ["a"],
    }
    batch["record"] = Record(X.clone())
    copy = copied(batch)
    assert plain(copy["pair"]) == Pair(X.tolist(), Y.tolist())
    copy["pair"].image.zero_()
    copy["array"] += 1
    copy["graph"].x.zero_()
    copy["record"].image.zero_()
    copy["names"].append("b")
    del copy["pair"]
    assert torch.equal(batch["pair"].image, X)
    assert batch["array"].tolist() == [0, 0]
    assert torch.equal(batch["graph"].x, X)
    assert torch.equal(batch["record"].image, X)
    assert batch["names"] == ["a"]


@pytest.mark.parametrize("kind", [Ordinary, Slotted, SimpleNamespace, lambda x: Delegating(x, other=None)])
def test_nor_does_what_is_written_to_a_copy_of_an_object(kind: Any) -> None:
    batch = kind(x=X.clone())
    changed, bound = copied(batch), copied(batch)
    assert type(changed) is type(batch)
    changed.x.zero_()
    bound.x = Y
    assert torch.equal(batch.x, X)


def test_objects_in_objects_and_containers_are_copied_too_and_may_hold_each_other() -> None:
    inner = SimpleNamespace(pair=[X.clone()])
    inner.outer = batch = Ordinary(inner)
    copy = copied(batch)
    copy.x.pair[0].zero_()
    assert copy.x is not inner
    assert copy.x.outer is copy
    assert torch.equal(inner.pair[0], X)


class Data(Dataset[Tensor]):
    """All samples."""

    def __init__(self) -> None:
        self.samples = X


@pytest.mark.parametrize("shared", [nn.Linear(2, 2), Data(), Ordinary("name"), torch.relu, Ordinary])
def test_what_holds_no_samples_of_a_batch_is_shared_with_its_copy(shared: Any) -> None:
    assert copied(Ordinary(X, other=shared)).other is shared


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        (X, 5),
        ((torch.tensor(1.0), X), 5),
        ({"name": "abc", "inner": [{"x": X}]}, 5),
        (torch.tensor(1.0), None),
        ({"name": "abc"}, None),
        ([], None),
        (None, None),
    ],
)
def test_the_size_is_that_of_the_first_tensor_with_one(batch: Any, size: int | None) -> None:
    assert batch_size(batch) == size


@pytest.mark.parametrize(
    ("batch", "parts", "error", "message"),
    [
        (
            (X, Y),
            6,
            ValueError,
            "draws_per_batch=6 needs at least 6 samples in a batch, but one has 5; raise the batch size, set "
            "drop_last=True, or lower draws_per_batch.",
        ),
        (
            "abc",
            2,
            ValueError,
            "draws_per_batch=2 needs at least 2 samples in a batch, but one has 0; raise the batch size, set "
            "drop_last=True, or lower draws_per_batch.",
        ),
        (
            {"w": torch.ones(3), "x": X, "inner": (Y, [X])},
            2,
            ValueError,
            "draws_per_batch=2 splits a batch along the first dimension of its tensors, but theirs differ: batch['w'] "
            "has 3, batch['x'] has 5, batch['inner'][0] has 5, batch['inner'][1][0] has 5. Let collate_fn stack or pad "
            "them to one size, with constants in the module; or take smaller batches and "
            "Trainer(accumulate_grad_batches=2), where each draws its own h.",
        ),
        (
            pack_sequence([X, X[:2]]),
            2,
            TypeError,
            "draws_per_batch=2 splits tensors in tuples, lists and mappings, but batch is a PackedSequence; let "
            "collate_fn give its tensors and make it in the step; or take smaller batches and "
            "Trainer(accumulate_grad_batches=2), where each draws its own h.",
        ),
        (
            (Record(X), Y),
            2,
            TypeError,
            "draws_per_batch=2 splits tensors in tuples, lists and mappings, but batch[0] is a Record; let "
            "collate_fn give its tensors and make it in the step; or take smaller batches and "
            "Trainer(accumulate_grad_batches=2), where each draws its own h.",
        ),
        (
            (Record(pack_sequence([X, X[:2]])), Y),  # type: ignore[arg-type]
            2,
            TypeError,
            "draws_per_batch=2 splits tensors in tuples, lists and mappings, but batch[0].image is a PackedSequence; "
            "let collate_fn give its tensors and make it in the step; or take smaller batches and "
            "Trainer(accumulate_grad_batches=2), where each draws its own h.",
        ),
        (
            {"graph": nn.Linear(1, 1)},
            3,
            TypeError,
            "draws_per_batch=3 splits tensors in tuples, lists and mappings, but batch['graph'] is a Linear; let "
            "collate_fn give its tensors and make it in the step; or take smaller batches and "
            "Trainer(accumulate_grad_batches=3), where each draws its own h.",
        ),
    ],
)
def test_messages(batch: Any, parts: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        split_batch(batch, parts)
    assert str(caught.value) == message
