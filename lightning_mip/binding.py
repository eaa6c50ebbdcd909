"""Binding: attributes of somebody else's module that hold the sampled ``h`` while a step runs."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_mip.priors import FLOAT32_DIGITS, number_text

# An object, or a mapping, and the name of what it holds.
Place = tuple[Any, str]
# Attribute of the LightningModule that lists the paths that the plug-in binds.
BOUND = "_bound_to_h"
# Attribute that DDP reads: names of what it does not synchronize.
_LEFT_TO_RANKS = "_ddp_params_and_buffers_to_ignore"
_ELSEWHERE = {
    "datamodule": (
        "which is on the data module: batches are loaded before h is drawn, partly by workers that hold copies, so "
        "they would not see it. Let training_step apply it to the batch, and name an attribute of the LightningModule"
    ),
    "trainer": (
        "which is on the Trainer: its settings and callbacks act on the whole run, not on one batch. Name an attribute "
        "of the LightningModule that its training_step reads"
    ),
}
_SHOWN = 12


def check_path(root: Any, path: str, value: Tensor) -> None:
    """Raise ValueError if the attribute at ``path`` cannot hold values such as ``value``, listing near matches."""
    head = path.split(".")[0]
    if head in _ELSEWHERE:
        raise ValueError(f"h has {path!r}, {_ELSEWHERE[head]}.")
    owner, name = _resolve(root, path)
    original = _read(owner, name)
    if isinstance(original, nn.Parameter):
        raise ValueError(f"h has {path!r}, which is a trained parameter; name a hyperparameter instead.")
    if not _holds_numbers(original):
        raise ValueError(
            f"h has {path!r}, which is of type {type(original).__name__}, expected a number, a tensor or a list of "
            "numbers; name one that the step reads, or leave it out of bind."
        )
    wanted, found = tuple(value.shape), tuple(torch.as_tensor([] if original is None else original).shape)
    if original is not None and value.numel() != torch.Size(found).numel():
        raise ValueError(
            f"h has {path!r}, whose values have shape {wanted}, but the attribute has shape {found}; give it a prior "
            "of that many numbers."
        )
    try:
        _write(owner, name, original)
    except Exception as error:  # whatever a property of somebody else's raises
        raise ValueError(
            f"h has {path!r}, which cannot be set: {error}. Name the attribute that it is made from, or leave it out "
            "of bind."
        ) from error


def keep_on_each_rank(root: nn.Module, paths: Iterable[str]) -> None:
    """Let DDP leave buffers at these paths alone: it would give all processes the ``h`` of the first one."""
    values = {id(value) for value in values_of(root, paths).values()}
    names = [name for name, buffer in root.named_buffers(remove_duplicate=False) if id(buffer) in values]
    if names:
        already = getattr(root, _LEFT_TO_RANKS, ())
        setattr(root, _LEFT_TO_RANKS, list(dict.fromkeys([*already, *names])))


def bound(root: Any, h: Mapping[str, Tensor]) -> AbstractContextManager[None]:
    """Let the attributes at the paths ``h`` hold its values inside the block, and what they held before afterwards."""
    return bound_at(places_of(root, h), h)


def places_of(root: Any, paths: Iterable[str]) -> dict[str, Place]:
    """Where the attributes at ``paths`` are."""
    return {path: _resolve(root, path) for path in paths}


def places_inside(root: Any, network: nn.Module, paths: Iterable[str]) -> dict[str, Place]:
    """Those attributes at ``paths`` of a module that its network itself can read."""
    known = {id(value) for child in network.modules() for value in (child, *vars(child).values())}
    inside = {}
    for path in paths:
        owner, found = root, root is network
        *parents, name = path.split(".")
        for part in parents:
            owner = _read(owner, part)
            found |= id(owner) in known
        if found:
            inside[path] = owner, name
    return inside


def write_into(copies: Mapping[int, Any], places: Mapping[str, Place], h: Mapping[str, Tensor]) -> None:
    """Write ``h`` into the copies of the owners of ``places``: id of an owner -> copy, as in the memo of a deepcopy."""
    for path, value in values_at(places, h).items():
        owner, name = places[path]
        if id(owner) in copies:
            _write(copies[id(owner)], name, value)


def values_at(places: Mapping[str, Place], h: Mapping[str, Tensor]) -> dict[str, Any]:
    """What ``h`` is at each of ``places``."""
    return {path: like(_read(*place), h[path]) for path, place in places.items()}


def like(original: Any, value: Tensor) -> Any:
    """A copy of ``value`` of the kind of ``original``: a tensor of its dtype, device and shape, a number, numbers.

    Whole numbers stay integers where the original is one; other values do not.
    """
    if isinstance(original, Tensor):
        fits = original.is_floating_point() or bool((value == value.round()).all())
        kind = original.dtype if fits else value.dtype
        return value.to(original.device, kind, copy=True).reshape(original.shape)
    plain = _digits(value.tolist()) if value.dtype == torch.float32 else value.tolist()
    if isinstance(original, (list, tuple)):
        return type(original)(plain if isinstance(plain, list) else [plain])
    whole = isinstance(original, int) and isinstance(plain, float) and plain.is_integer()
    return type(original)(plain) if whole else plain


def with_gradient(original: Any, value: Tensor) -> Any:
    """The same as `like`, but of what wants a gradient nothing is cut off from it: a number becomes a tensor."""
    if not value.requires_grad:
        return like(original, value)
    if isinstance(original, Tensor):
        kind = original.dtype if original.is_floating_point() else value.dtype
        return value.to(original.device, kind).reshape(original.shape)
    return type(original)(value.reshape(-1).unbind()) if isinstance(original, (list, tuple)) else value


@contextmanager
def bound_at(
    places: Mapping[str, Place], h: Mapping[str, Tensor], make: Callable[[Any, Tensor], Any] = like
) -> Iterator[None]:
    """The same as `bound`, where the places are known; ``make`` gives what each is to hold: of what it holds, and h."""
    originals = {path: _read(*place) for path, place in places.items()}
    try:
        for path, place in places.items():
            _write(*place, make(originals[path], h[path]))
        yield
    finally:
        for path, place in places.items():
            _write(*place, originals[path])


def written(config: Any, path: str, value: Tensor) -> bool:
    """Write ``value`` at ``path`` of a mapping such as saved hyperparameters, if it is there; returns whether it is."""
    try:
        owner, name = _resolve(config, path)
    except ValueError:
        return False
    _write(owner, name, like(_read(owner, name), value))
    return True


def put(config: Any, path: str, value: Any) -> None:
    """Write ``value`` at ``path`` of a nested mapping, as it is."""
    _write(*_resolve(config, path), value)


def values_of(root: Any, paths: Iterable[str]) -> dict[str, Any]:
    """What the attributes at ``paths`` hold."""
    return {path: _read(*_resolve(root, path)) for path in paths}


def _holds_numbers(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(isinstance(item, (int, float)) for item in value)
    return value is None or isinstance(value, (int, float, Tensor))


def _digits(value: Any) -> Any:
    """Drop the digits that a float32 does not have: 0.1, not 0.10000000149011612."""
    if isinstance(value, list):
        return [_digits(item) for item in value]
    return float(number_text(value, FLOAT32_DIGITS)) if isinstance(value, float) else value


def _resolve(root: Any, path: str) -> tuple[Any, str]:
    """Find the object that holds the last part of ``path``."""
    *parents, name = path.split(".")
    owner = root
    for depth, part in enumerate((*parents, name)):
        if not _has(owner, part):
            raise ValueError(_missing(root, owner, path, ".".join(parents[:depth])))
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


def _missing(root: Any, owner: Any, path: str, walked: str) -> str:
    found = _paths(owner, f"{walked}." if walked else "")
    if not walked and hasattr(root, "hparams"):
        found = _paths(root.hparams, "hparams.") + found
    shown = difflib.get_close_matches(path, found, n=3, cutoff=0.5) or found[:_SHOWN]
    where = f"{type(root).__name__}.{walked}" if walked else type(root).__name__
    return (
        f"h has {path!r}, but {where} has no such attribute; near are {', '.join(shown) or 'none'}. Name one that the "
        "step reads, or pass bind=False if nothing in the module reads this component."
    )


def _paths(owner: Any, prefix: str) -> list[str]:
    """Paths of what ``owner`` holds: values that can be bound, and what may hold such."""
    if isinstance(owner, Mapping):
        values = dict(owner)
    else:
        values = dict(vars(owner)) if hasattr(owner, "__dict__") else {}
        if isinstance(owner, nn.Module):
            values |= {**owner._buffers, **owner._modules}
    return [f"{prefix}{name}" for name, value in values.items() if not str(name).startswith("_") and _is_place(value)]


def _is_place(value: Any) -> bool:
    return isinstance(value, nn.Module) or not (isinstance(value, (bool, str)) or callable(value))
