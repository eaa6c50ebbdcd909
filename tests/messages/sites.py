"""Where a package raises or warns, with which texts, and which texts its tests hold: all read from the source.

A text is kept as its form: what it says whatever the values are, with `HOLE` for each value that is put in.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

HOLE = "\0"
_SAYS_SOMETHING = 12  # letters; with fewer, texts of other sites would have the form too
_WARN = ("warn", "rank_zero_warn")  # their text is the first argument
_FAIL = "fail"  # of the command line; its text is the last argument
_PASSED_ON = ("str", "condensed")  # what they give is the text of another error
_Forms = Mapping[str, list[str]]


@dataclass(frozen=True)
class Site:
    """One text of one raise, warning or exit: where it is, in which function (``module.function``), and its form."""

    where: str
    function: str
    form: str

    @property
    def literal(self) -> str:
        """What it says whatever the values are."""
        return self.form.replace(HOLE, "")

    @property
    def is_vague(self) -> bool:
        """Whether it says hardly more than the values that are put in."""
        return len(re.findall("[a-z]", self.literal)) < _SAYS_SOMETHING

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(".*".join(map(re.escape, self.form.split(HOLE))), re.DOTALL)

    def is_of(self, text: str) -> bool:
        """Whether the text as a whole has this form."""
        return self._pattern.fullmatch(text) is not None


def sites_of(root: Path) -> list[Site]:
    """The sites of a package, in the order of the source."""
    trees = {path: ast.parse(path.read_text()) for path in sorted(root.rglob("*.py"))}
    nodes = [node for tree in trees.values() for node in ast.walk(tree)]
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    calls: dict[str, list[ast.Call]] = {}
    for node in nodes:
        if isinstance(node, ast.Call):
            calls.setdefault(_called(node.func), []).append(node)
    names = {name: forms for tree in trees.values() for name, forms in _constants(tree).items()}
    reader = _Reader(functions)
    found = list[Site]()
    for path, tree in trees.items():
        own = {**names, **_constants(tree)}
        for function, node in _in_functions(tree):
            text = _told(node)
            if text is None:
                continue
            name = f"{path.stem}.{function.name}" if function else path.stem
            forms = {form for known in _known(function, calls, own, reader) for form in reader.forms(text, known)}
            found += [Site(f"{path.relative_to(root.parent)}:{node.lineno}", name, form) for form in sorted(forms)]
    return found


def texts_of(root: Path) -> set[str]:
    """Every string that the tests under a folder hold, but for docstrings."""
    found: set[str] = set()
    for path in sorted(root.rglob("*.py")):
        tree = ast.parse(path.read_text())
        names, reader = _constants(tree), _Reader([])
        nodes = list(ast.walk(tree))
        no_texts = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
        no_texts |= {id(node.value) for node in nodes if isinstance(node, ast.Expr)}  # docstrings
        for node in nodes:
            if id(node) in no_texts or not isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp):
                continue
            for text in reader.forms(node, names):
                pattern = re.sub(r"\\(.)", r"\1", text.removeprefix("^").removesuffix("$"))
                found |= {text, pattern, text.partition(": error: ")[2]}
    return found


def by_site(sites: list[Site], texts: Iterable[str]) -> dict[Site, list[str]]:
    """The texts that test each site: those of its form, but for those of which another site says more."""
    found: dict[Site, list[str]] = {site: [] for site in sites}
    for text in texts:
        own = [site for site in sites if site.is_of(text)]
        most = max((len(site.literal) for site in own), default=0)
        for site in own:
            if len(site.literal) == most:
                found[site].append(text)
    return found


class _Reader:
    """Reads texts from expressions, as far as that can be done without running them; knows functions that make some."""

    def __init__(self, functions: list[ast.FunctionDef]) -> None:
        number = Counter(function.name for function in functions)
        self.helpers = {function.name: function for function in functions if number[function.name] == 1}

    def forms(self, node: ast.AST | None, names: _Forms) -> list[str]:
        """All that the expression may be."""
        match node:
            case ast.Constant(value=str(text)):
                return [text]
            case ast.JoinedStr(values=values):
                return ["".join(parts) for parts in itertools.product(*(self.forms(value, names) for value in values))]
            case ast.FormattedValue(value=ast.Name() | ast.Subscript() as value, conversion=-1, format_spec=None):
                return self.forms(value, names)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return [a + b for a in self.forms(left, names) for b in self.forms(right, names)]
            case ast.IfExp(body=body, orelse=other):
                return [*self.forms(body, names), *self.forms(other, names)]
            case ast.Dict(values=values):
                return [form for value in values for form in self.forms(value, names)]
            case ast.Name(id=name) | ast.Subscript(value=ast.Name(id=name)) if name in names:
                return names[name]
            case ast.Call(func=function) if _called(function) in self.helpers:
                helper, inside = self.helpers[_called(function)], _Reader([])
                returned = [value.value for value in ast.walk(helper) if isinstance(value, ast.Return)]
                return [form for value in returned for form in inside.forms(value, names)]
        return [HOLE]


def _constants(tree: ast.Module) -> dict[str, list[str]]:
    """Module-level texts, and texts in module-level dicts."""
    reader, found = _Reader([]), dict[str, list[str]]()
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant() | ast.JoinedStr() | ast.Dict() as value):
                found[name] = reader.forms(value, found)
    return found


def _known(
    function: ast.FunctionDef | None, calls: Mapping[str, list[ast.Call]], names: _Forms, reader: _Reader
) -> Iterator[_Forms]:
    """What names stand for in a function: texts that it assigns, and those that its callers give, call by call."""
    if function is None:
        yield names
        return
    local: dict[str, list[str]] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            local.setdefault(node.targets[0].id, []).extend(reader.forms(node.value, names))
    parameters = [argument.arg for argument in function.args.args if argument.arg != "self"]
    for arguments in [call.args for call in calls.get(function.name, ())] or [[]]:
        given = {name: reader.forms(value, names) for name, value in zip(parameters, arguments, strict=False)}
        yield {**names, **local, **given}


def _in_functions(
    node: ast.AST, function: ast.FunctionDef | None = None
) -> Iterator[tuple[ast.FunctionDef | None, ast.AST]]:
    """All nodes, with the function that each stands in."""
    for child in ast.iter_child_nodes(node):
        yield function, child
        yield from _in_functions(child, child if isinstance(child, ast.FunctionDef) else function)


def _told(node: ast.AST) -> ast.expr | None:
    """The text that a statement tells a user, if it tells one."""
    match node:
        case ast.Raise(exc=ast.Call(args=[text, *_])):
            pass
        case ast.Call(func=function, args=[text, *_]) if _called(function) in _WARN:
            pass
        case ast.Call(func=function, args=[*_, text]) if _called(function) == _FAIL:
            pass
        case _:
            return None
    passed_on = isinstance(text, ast.Call) and _called(text.func) in _PASSED_ON
    is_status = isinstance(text, ast.Constant) and not isinstance(text.value, str)
    return None if passed_on or is_status else text


def _called(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
