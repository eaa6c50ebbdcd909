"""Loading a checkpoint imports no module that only the checkpoint names: importing one runs its code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Verdicts(dict[str, bool]):
    """jsonargparse's table of what a config may import, which also denies what is not imported yet.

    Attributes:
        denied: what was asked for and denied so.
    """

    def __init__(self, known: dict[str, bool]) -> None:
        super().__init__(known)
        self.denied: list[str] = []

    def __contains__(self, path: object) -> bool:
        return super().__contains__(path) or (path != "*" and not _is_imported(str(path)))

    def __missing__(self, path: str) -> bool:
        self.denied.append(path)
        return False


def _is_imported(path: str) -> bool:
    module, _, name = path.rpartition(".")
    if path in sys.modules or module in sys.modules:
        return True
    while module and module not in sys.modules:  # of a class in a class
        module, _, name = module.rpartition(".")
    return bool(module) and name in vars(sys.modules[module])


@contextmanager
def only_imported() -> Iterator[None]:
    """Let the class paths of a checkpoint's hyperparameters resolve to what is imported, as Lightning does for its own.

    Raises:
        ValueError: one of them does not.
    """
    # Here, so that another version without this table stops loading, and not the whole package. Its public setter can
    # neither ask what is imported nor be undone.
    from jsonargparse._common import parsing_settings

    outer = {name: parsing_settings[name] for name in ("import_path_verdicts", "import_paths_enforced")}
    verdicts = _Verdicts(outer["import_path_verdicts"])
    parsing_settings.update(import_path_verdicts=verdicts, import_paths_enforced=True)
    try:
        yield
    except Exception as error:  # of jsonargparse, whose unions swallow the denial and tell of all they have tried
        if not verdicts.denied or isinstance(error, RuntimeError):  # of the weights, which are loaded later
            raise
        path = verdicts.denied[0]
        raise ValueError(
            f"The checkpoint names {path}, but its module is not imported, and loading imports nothing that a "
            f"checkpoint names; if you trust it, import {path.rpartition('.')[0]} first."
        ) from error
    finally:
        parsing_settings.update(outer)
