"""Which parameters of the primary network are generated."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Mapping

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from lightning_mip.shown import shown

Pattern = str | type[nn.Module] | nn.Parameter
Patterns = Pattern | Iterable[Pattern]

_SHOWN = 12


def aliases(module: nn.Module) -> dict[str, list[str]]:
    """First name -> all names of each parameter; tied parameters and shared modules have several."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {group[0]: group for group in names.values()}


def select(module: nn.Module, include: Patterns, exclude: Patterns) -> dict[str, list[str]]:
    """Choose parameters by glob on names (of parameters or modules), module type, or the parameter itself.

    Returns:
        First name -> all names of each chosen parameter.

    Raises:
        ValueError: a pattern matches nothing, or nothing is left; the message lists what exists.
        TypeError: a chosen parameter cannot be generated (lazy, complex, integer or scripted).
    """
    groups = aliases(module)
    if not groups:
        raise ValueError(f"{type(module).__name__} has no parameters, so there is nothing to generate.")
    included = _matched(module, groups, "include", include)
    excluded = _matched(module, groups, "exclude", exclude)
    chosen = {name: group for name, group in groups.items() if name in included - excluded}
    if not chosen:
        raise ValueError(
            f"include={shown(include)} without exclude={shown(exclude)} leaves no parameter; {there_are('', groups)}"
        )
    for name in chosen:
        _check_generable(module, name)
    return chosen


def matches_glob(pattern: str, name: str) -> bool:
    """Whether a glob names a parameter, or a module around it."""
    pattern = pattern.replace("_orig_mod.", "")
    return any(fnmatch.fnmatchcase(path, pattern) for path in (name, *_owners(name)))


def split_name(name: str) -> tuple[str, str]:
    """Split a parameter's name into those of its module and of its attribute."""
    owner, _, attribute = name.rpartition(".")
    return owner, attribute


def _matched(module: nn.Module, groups: dict[str, list[str]], argument: str, patterns: Patterns) -> set[str]:
    found: set[str] = set()
    for pattern in _several(patterns):
        hits = {name for name, group in groups.items() if _matches(module, pattern, group)}
        if not hits and not (argument == "include" and pattern == "*"):
            named = repr(pattern) if isinstance(pattern, str) else getattr(pattern, "__name__", "the given parameter")
            raise ValueError(f"{argument}={named} matches no parameter; {there_are(pattern, groups)}")
        found |= hits
    return found


def _several(patterns: Patterns) -> Iterable[Pattern]:
    single = isinstance(patterns, (str, type, Tensor, nn.Module)) or not isinstance(patterns, Iterable)
    return [patterns] if single else patterns  # type: ignore[list-item, return-value]


def _matches(module: nn.Module, pattern: Pattern, names: list[str]) -> bool:
    if isinstance(pattern, nn.Parameter):
        return module.get_parameter(names[0]) is pattern
    if isinstance(pattern, type):
        return any(isinstance(module.get_submodule(path), pattern) for name in names for path in _owners(name))
    if isinstance(pattern, str):
        return any(matches_glob(pattern, name) for name in names)
    raise TypeError(f"pattern {shown(pattern)}: expected a glob such as 'encoder.*', a module type or a parameter.")


def _owners(name: str) -> list[str]:
    """Names of all modules around a parameter, the root ('') included."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts))]


def there_are(pattern: Pattern, groups: Mapping[str, Iterable[str]]) -> str:
    """The end of an error message: what exists (first name -> all names), and what a glob was perhaps meant to be."""
    paths = [path for names in groups.values() for name in names for path in (*_owners(name), name)]
    known = {path.lower(): path for path in paths if path}
    wanted = pattern.lower().rstrip(".*") if isinstance(pattern, str) else ""
    close = difflib.get_close_matches(wanted, known, n=1)
    hint = f" Did you mean {known[close[0]]!r}?" if close else ""
    return f"there are {listing(groups)}.{hint}"


def listing(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _check_generable(module: nn.Module, name: str) -> None:
    parameter = module.get_parameter(name)
    owner = type(module.get_submodule(split_name(name)[0])).__name__
    if isinstance(parameter, UninitializedParameter):
        raise TypeError(f"{name} of the lazy {owner} has no shape yet; run the network once on a batch first.")
    if not parameter.is_floating_point():
        raise TypeError(
            f"{name} has dtype {parameter.dtype}, which cannot be generated; exclude={name!r} leaves it out."
        )
    if "ScriptModule" in owner:
        raise TypeError(
            f"{name} belongs to a scripted module, whose weights are fixed; exclude={name!r} leaves it out."
        )
