"""Strategies for what somebody may give where a number, a name, or an object is expected."""

from __future__ import annotations

import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
_ODD = [0, 1, -1, 2, 10**9, 10**400, 0.0, -0.0, 0.5, 1e-45, 1e-38, 3e38, 1e308, float("nan"), float("inf"), True]


def _tensor(shape: list[int], dtype: torch.dtype, value: float) -> Tensor:
    return torch.full(shape, value).to(dtype)


tensors: st.SearchStrategy[Tensor] = st.builds(
    _tensor,
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from([*DTYPES, torch.complex64]),
    st.sampled_from([0.0, 0.25, 1.0, 7.0, float("nan")]),
)
arrays: st.SearchStrategy[Any] = st.builds(
    np.full, st.lists(st.integers(0, 3), max_size=2).map(tuple), st.sampled_from([0.0, 0.5, 1]), st.sampled_from("fdi")
)
numbers: st.SearchStrategy[Any] = (
    st.floats()
    | st.integers(-5, 50)
    | st.sampled_from(_ODD)
    | st.sampled_from([np.float32(0.1), np.float64(2), np.int64(3), torch.tensor(0.5), torch.tensor(4)])
)
texts = st.text(max_size=6) | st.sampled_from(["lam", "lam ", "a\nb", "nan", "1e3", "*", "[", "0.5", ""])
others: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    texts,
    st.binary(max_size=3),
    tensors,
    arrays,
    st.lists(st.floats(0, 1) | st.none(), max_size=3),
    st.dictionaries(texts, st.floats(0, 1), max_size=2),
    st.sets(st.integers(0, 2)),
    st.sampled_from([1j, Decimal("0.5"), Fraction(1, 3), datetime.date(2020, 1, 1), object(), float, range(3), len]),
    st.just(nn.Identity()),
)
anything = numbers | others
# In place of one of some words. Arrays are left out, as `==` of them is no answer.
no_word = anything.filter(lambda value: not isinstance(value, (Tensor, np.ndarray)))
