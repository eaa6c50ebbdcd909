"""Binding: attributes of somebody else's module that hold the sampled ``h`` while a step runs."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

_AHEAD = ("datamodule", "trainer")
_SHOWN = 12


def check_path(root: Any, path: str) -> None:
    """Raise ValueError if ``path`` is not an attribute that can be bound, listing near matches."""
    if path.split(".")[0] in _AHEAD:
        raise ValueError(
            f"h has {path!r}, which is not on the LightningModule: batches are loaded before h is drawn, partly by "
            "workers that hold copies, so they would not see it. Apply it to the batch inside the module instead."
        )
    if isinstance(_read(*_resolve(root, path)), nn.Parameter):
        raise ValueError(f"h has {path!r}, which is a trained parameter; bind a hyperparameter instead.")


@contextmanager
def bound(root: Any, h: Mapping[str, Tensor]) -> Iterator[None]:
    """Let the attributes at the paths ``h`` hold its values inside the block, and what they held before afterwards."""
    places = [(_resolve(root, path), value) for path, value in h.items()]
    originals = [_read(*place) for place, _ in places]
    try:
        for (place, value), original in zip(places, originals, strict=True):
            _write(*place, like(original, value))
        yield
    finally:
        for (place, _), original in zip(places, originals, strict=True):
            _write(*place, original)


def like(original: Any, value: Tensor) -> Any:
    """Give ``value`` the kind of ``original``: a tensor of its dtype and device, a number, or a list of numbers."""
    if isinstance(original, Tensor):
        return value.to(original)
    plain = _digits(value.tolist())
    return type(original)(plain) if isinstance(original, (list, tuple)) and isinstance(plain, list) else plain


def _digits(value: Any) -> Any:
    """Drop the digits that a float32 does not have: 0.1, not 0.10000000149011612."""
    if isinstance(value, list):
        return [_digits(item) for item in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


def written(config: Any, path: str, value: Tensor) -> None:
    """Write ``value`` at ``path`` of a nested mapping such as saved hyperparameters, where it exists."""
    owner, name = _resolve(config, path)
    _write(owner, name, like(_read(owner, name), value))


def _resolve(root: Any, path: str) -> tuple[Any, str]:
    """Find the object that holds the last part of ``path``."""
    *parents, name = path.split(".")
    owner = root
    for depth, part in enumerate((*parents, name)):
        if not _has(owner, part):
            raise ValueError(_missing(root, owner, path, ".".join(parents[:depth]), part))
        if depth < len(parents):
            owner = _read(owner, part)
    return owner, name


def _has(owner: Any, name: str) -> bool:
    return name in owner if isinstance(owner, Mapping) else hasattr(owner, name)


def _read(owner: Any, name: str) -> Any:
    return owner[name] if isinstance(owner, Mapping) else getattr(owner, name)


def _write(owner: Any, name: str, value: Any) -> None:
    if isinstance(owner, MutableMapping):
        owner[name] = value
    else:
        setattr(owner, name, value)


def _missing(root: Any, owner: Any, path: str, walked: str, part: str) -> str:
    names = [str(name) for name in owner] if isinstance(owner, Mapping) else _attributes(owner)
    near = difflib.get_close_matches(part, names, n=3, cutoff=0.5) or names[:_SHOWN]
    where = f"{type(root).__name__}.{walked}" if walked else type(root).__name__
    prefix = f"{walked}." if walked else ""
    shown = ", ".join(prefix + name for name in near) or "none"
    return (
        f"h has {path!r}, but {where} has no such attribute; near are {shown}. Name one that the step reads, or pass "
        "bind=False if nothing in the module reads this component."
    )


def _attributes(owner: Any) -> list[str]:
    """Public attributes that hold a value, the module's own children included."""
    names = [*vars(owner)] if hasattr(owner, "__dict__") else []
    if isinstance(owner, nn.Module):
        names += [*owner._modules, *owner._buffers]
        names += ["hparams"] if hasattr(owner, "hparams") else []
    return [name for name in names if not name.startswith("_")]
