"""Errors of the command line: a line or two for a user's mistake, a traceback for a mistake in code."""

from __future__ import annotations

import argparse
import difflib
import inspect
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser

import lightning_mip

_PACKAGE = str(Path(__file__).parents[1])
# What says that a value is wrong, whoever raises it; other errors may be mistakes in code.
_OF_VALUES = (ValueError, ImportError, MisconfigurationException)
_OURS = (*_OF_VALUES, TypeError, MemoryError, RuntimeError, FloatingPointError)
# Lines of jsonargparse that say how it searched, not what it found.
_SEARCH = re.compile(
    r"Does not validate against|Subtypes:|Errors:|Given value|Expected a <class 'NoneType'>|Expected a path but|"
    r"Not a valid subclass of|Subclass types expect one of|a class path \(str\)|a dict with(out)? |$"
)
_PRIOR = " Write h as {lam: {class_path: Uniform, init_args: {low: 0, high: 1}}}."
_SHORT = 40  # longer values are whole configs
_NO_CLASS = re.compile(r"Expected a dot import path string: ([^\s;]+)|module '(\S+)' has no attribute '(\S+)'")


class Parser(LightningArgumentParser):
    """A parser whose errors fit on a screen. ``JSONARGPARSE_DEBUG=true`` gives jsonargparse's own, with tracebacks."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with a line that says which argument is wrong, and why."""
        if _debugging() or not self.exit_on_error:  # which the parsers of the classes inside do not
            super().error(message, ex)
        prog = (getattr(ex, "subcommand_parser", None) or self).prog.replace(" [options]", "")
        prog = " ".join(prog.split()[:2])  # without the `validate` that other commands are parsed by
        print(f"{prog}: error: {condensed(message)}\ntip: {prog} --help shows all arguments.", file=sys.stderr)
        raise SystemExit(2)


class Options(argparse.ArgumentParser):
    """The parser of a command beside those of LightningCLI, whose errors do not begin with the usage."""

    def __init__(self, command: str, **arguments: Any) -> None:
        super().__init__(
            prog=f"lightning-mip {command}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **arguments,
        )

    def error(self, message: str) -> NoReturn:
        """End with a line that says which argument is wrong, and why."""
        print(f"{self.prog}: error: {message}\ntip: {self.prog} --help shows all arguments.", file=sys.stderr)
        raise SystemExit(2)


def fail(command: str, message: str) -> NoReturn:
    """End with one line, as a parser does."""
    print(f"{f'lightning-mip {command}'.strip()}: error: {message}", file=sys.stderr)
    raise SystemExit(2)


@contextmanager
def one_line(command: str) -> Iterator[None]:
    """Turn errors that this package raises for its users into one line; those of their own code stay as they are."""
    try:
        yield
    except _OURS as error:
        if _debugging() or not (_is_ours(error) or isinstance(error, MisconfigurationException)):
            raise
        fail(command, str(error))


@contextmanager
def instantiating(command: str) -> Iterator[None]:
    """Turn the refusal of an object that a config describes into one line; a mistake in its code stays a traceback.

    jsonargparse tells of every type that it has tried; what the class itself raised is at the bottom of that.
    """
    try:
        yield
    except Exception as error:
        root: BaseException = error
        while root.__cause__ is not None and not _is_ours(root):
            root = root.__cause__
        if _debugging():
            raise
        if isinstance(root, _OF_VALUES) or (isinstance(root, _OURS) and _is_ours(root)):
            fail(command, condensed(str(root)))
        raise root from None


def condensed(message: str) -> str:
    """One line from the tree that jsonargparse writes: the argument, its class, and what is wrong."""
    keys, kinds, reasons = list[str](), list[str](), dict[str, None]()
    given = ""
    for line in message.splitlines():
        if line.strip().startswith("Given value: "):
            given = re.sub(r"NestedArg\(key='.*?', val='?(.*?)'?\)", r"\1", line.strip().removeprefix("Given value: "))
        text = line.strip().removeprefix("- ").strip()
        if _SEARCH.match(text):
            continue
        while found := re.match(r"Parser key \"(.*?)\":\s*|Problem with given class_path '(.*?)':\s*", text):
            text = text[found.end() :]
            (keys if found[1] else kinds).append(found[1] or found[2])
        if text:
            reasons[re.sub(r"<class '(.*?)'>", r"\1", text)] = None
    where = ".".join(dict.fromkeys(keys)) + (f" of {kinds[-1]}" if kinds and keys else "")
    what = "; ".join(reasons) or "the value does not fit"
    if "lightning_mip.Prior is abstract" in what:
        what = "a prior has no class_path, or h no name of a component"
    if what.startswith("Expected") and given and len(given) < _SHORT and given not in what:
        what = f"got {given!r}. {what}"
    of_h = bool(keys) and keys[-1].rpartition(".")[2] == "h"
    what = what.rstrip(".") + "." + (_hint(what, kinds) or (_PRIOR if of_h else ""))
    return f"{where}: {what}" if where else what


def _hint(reason: str, kinds: list[str]) -> str:
    """What exists, where a name does not."""
    if found := _NO_CLASS.search(reason):
        short, module, name = found.groups()
        known = vars(lightning_mip) if short else vars(sys.modules[module]) if module in sys.modules else {}
        classes = [key for key, value in known.items() if isinstance(value, type)]
        if short in classes:  # jsonargparse says no more of a function's class whose arguments it cannot take
            return " That class is there; it, or one of its init_args, does not fit here."
        hint = close(short or name, classes)
        return hint or (" Give the class as package.module.Class." if short else "")
    if kinds and (option := re.match(r"Option '(.*?)' is not accepted", reason)):
        module, _, name = kinds[-1].rpartition(".")
        kind = getattr(sys.modules.get(module), name, None)
        try:
            return close(option[1], inspect.signature(kind).parameters) if callable(kind) else ""
        except ValueError:  # torch.Tensor and other builtins have none
            return ""
    return ""


def close(name: str, known: Iterable[str]) -> str:
    """A sentence that names what is meant, where something is spelt like it."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {found[0]!r}?" if found else ""


def _debugging() -> bool:
    return os.environ.get("JSONARGPARSE_DEBUG", "").lower() == "true"


def _is_ours(error: BaseException) -> bool:
    """Whether it comes from this package's own code, not from what that calls."""
    trace: Any = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code.co_filename.startswith(_PACKAGE)
