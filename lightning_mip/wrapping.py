"""Wrapping a hook of a LightningModule so that Lightning gives it the arguments that it would have without."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

_Hook = TypeVar("_Hook", bound=Callable[..., Any])


def wraps(hook: Callable[..., Any]) -> Callable[[_Hook], _Hook]:
    """Do as ``functools.wraps``, also for a hook that is wrapped already, such as by ``torch.no_grad()``."""

    def mark(wrapper: _Hook) -> _Hook:
        functools.update_wrapper(wrapper, hook)
        # Lightning looks for the arguments in what one wrapper is around, not deeper.
        wrapper.__wrapped__ = getattr(hook, "__wrapped__", hook)  # type: ignore[attr-defined]
        return wrapper

    return mark
