"""Mutation testing: change one place of a module at random, and see whether the tests of that module fail.

`python -m tests.mutation --sample 15 --seed 0` copies the package and the tests to a temporary folder and works there.
Each mutant runs in a process of its own, forked from one that has imported torch and Lightning.
"""

from __future__ import annotations

import argparse
import ast
import copy
import difflib
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import Phase

ROOT = Path(__file__).parents[1]
LIMIT = 180  # seconds; a mutant that runs for longer counts as killed
FAULT = 70  # of this script, in the process that was forked
FAILED = (1, 2)  # pytest's exit codes for failed tests, and for errors in collecting them

# The files whose tests are those of a module; their order is that of running.
TESTS = {
    "priors": ["test_priors", "test_space"],
    "encodings": ["test_encodings"],
    "space": ["test_space"],
    "heads": ["test_heads", "test_head_kinds", "test_low_rank", "test_chunked", "test_hypernetwork"],
    "hypernetwork": ["test_hypernetwork", "test_head_choice", "test_matching", "fuzz/test_found"],
    "hypernetize": ["test_hypernetize", "test_guards", "test_report", "fuzz/test_found"],
    "metrics": ["test_metrics", "callbacks/test_per_h_metrics"],
}

OTHER: dict[type, type] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.MatMult: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.USub: ast.UAdd,
}


def variants(node: ast.AST) -> list[ast.AST]:
    """What a node may be replaced by."""
    found: list[ast.AST] = [OTHER[type(node)]()] if type(node) in OTHER else []
    match node:
        case ast.Constant(value=bool() as value):
            found.append(ast.Constant(not value))
        case ast.Constant(value=int() | float() as value):
            found.append(ast.Constant(value + 1))
        case ast.Constant(value=str() as value):
            found.append(ast.Constant(f"XX{value}XX"))
        case ast.UnaryOp(op=ast.Not()):
            found.append(node.operand)
        case ast.If() | ast.IfExp():
            changed = copy.deepcopy(node)
            changed.test = ast.UnaryOp(ast.Not(), node.test)
            found.append(changed)
        case ast.Return(value=ast.expr()):
            found.append(ast.Return(ast.Constant(None)))
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Raise():
            found.append(ast.Pass())
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            found.append(ast.Pass())
        case ast.Break() | ast.Continue():
            found.append(ast.Pass())
    return found


def children(node: ast.AST) -> Iterator[tuple[Any, Any, ast.AST]]:
    """Where a node holds others: the holder, its key, and the one that is held; no annotations, no docstrings."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "keywords") and isinstance(
            node, (ast.arg, ast.FunctionDef, ast.AnnAssign)
        ):
            continue
        for key, child in enumerate(value) if isinstance(value, list) else [(name, value)]:
            if isinstance(child, ast.AST):
                yield (value if isinstance(value, list) else node), key, child


def is_inert(node: ast.AST, in_module: bool) -> bool:
    """Whether nothing that runs depends on the node: docstrings, imports, types, ``__all__``."""
    match node:
        case ast.Expr(value=ast.Constant()) | ast.Import() | ast.ImportFrom() | ast.JoinedStr():
            return True
        case ast.Assign(targets=[ast.Name(id="__all__")]):
            return True
        case ast.Assign(value=ast.Subscript() | ast.BinOp(op=ast.BitOr())):
            return in_module
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
    return False


def put(holder: Any, key: Any, node: ast.AST) -> None:
    """Put a node in its place."""
    if isinstance(holder, list):
        holder[key] = node
    else:
        setattr(holder, key, node)


def mutants(source: str) -> Iterator[tuple[int, str]]:
    """Line of the source and text of each mutant."""
    tree = ast.parse(source)

    def walk(node: ast.AST, line: int) -> Iterator[tuple[int, str]]:
        for holder, key, child in children(node):
            if is_inert(child, isinstance(node, ast.Module)):
                continue
            at = getattr(child, "lineno", line)
            for variant in variants(child):
                put(holder, key, variant)
                yield at, ast.unparse(ast.fix_missing_locations(tree))
                put(holder, key, child)
            yield from walk(child, at)

    return walk(tree, 1)


def _run_pytest(folder: Path, files: list[str]) -> int:
    os.setsid()
    os.chdir(folder)
    output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    # What was imported from the working tree, this file among it, is not to be found again.
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    sys.path[:] = [str(folder), *(path for path in sys.path if Path(path or ".").resolve() != ROOT)]
    os.environ["PYTHONPATH"] = str(folder)
    # A smaller example of the same failure, which hypothesis would look for, is of no use here.
    hypothesis.settings.register_profile("mutation", phases=[Phase.explicit, Phase.generate], database=None)
    hypothesis.settings.load_profile("mutation")
    # Hypothesis is imported before pytest can rewrite its plug-in's assertions, which is no harm.
    quiet = ["-W", "ignore:Module already imported"]
    arguments = [*quiet, "-x", "-m", "not slow", "-p", "no:cacheprovider", "--tb=line", f"--rootdir={folder}"]
    return pytest.main([*arguments, *(f"tests/{name}.py" for name in files)])


def run_tests(folder: Path, files: list[str]) -> int | None:
    """Exit code of pytest on the copy in a folder; None where it takes too long."""
    process = os.fork()
    if not process:
        try:
            os._exit(_run_pytest(folder, files))
        finally:  # never back to the caller, whose folder is not this process's to remove
            traceback.print_exc()
            os._exit(FAULT)
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None


def try_module(module: str, folder: Path, sample: int, seed: int) -> tuple[int, int]:
    """Print the survivors among a sample of a module's mutants; return how many were killed, and tried."""
    path = folder / "lightning_mip" / f"{module}.py"
    source = path.read_text()
    plain = ast.unparse(ast.parse(source))
    possible = list(mutants(source))
    chosen = random.Random(f"{seed} {module}").sample(possible, min(sample, len(possible)))
    killed = 0
    for line, text in chosen:
        path.write_text(text)
        code = run_tests(folder, TESTS[module])
        if code is None or code < 0 or code in FAILED:
            killed += 1
            print(".", end="", file=sys.stderr, flush=True)
            continue
        if code != 0:
            raise RuntimeError(f"pytest ended with {code}:\n{(folder / 'output.txt').read_text()}")
        difference = list(difflib.unified_diff(plain.splitlines(), text.splitlines(), lineterm="", n=0))[2:]
        shown = "\n".join(f"    {each}" for each in difference if not each.startswith("@@"))
        print(f"survived: lightning_mip/{module}.py:{line}\n{shown}", flush=True)
    path.write_text(source)
    print(f"{module}: {killed} of {len(chosen)} killed, of {len(possible)} possible mutants", flush=True)
    return killed, len(chosen)


def main() -> None:
    """Try the modules, one after the other."""
    parser = argparse.ArgumentParser(description="Mutation testing of the modules that compute.")
    parser.add_argument("modules", nargs="*", default=list(TESTS), help=f"of {', '.join(TESTS)}; all by default")
    parser.add_argument("--sample", type=int, default=15, help="mutants per module (default: 15)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of mutants (default: 0)")
    given = parser.parse_args()

    for name in ("lightning.pytorch.cli", "matplotlib.pyplot", "torchmetrics"):
        importlib.import_module(name)  # once, for all mutants

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("lightning_mip", "tests", "examples", "benchmarks"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        sys.dont_write_bytecode = True  # two mutants of one second and size would share a cached file
        counts = []
        for module in given.modules:
            if run_tests(folder, TESTS[module]) != 0:
                raise RuntimeError(f"{module}: tests fail without a mutant:\n{(folder / 'output.txt').read_text()}")
            counts.append(try_module(module, folder, given.sample, given.seed))
    killed, tried = (sum(column) for column in zip(*counts, strict=True))
    print(f"all: {killed} of {tried} killed ({killed / tried:.0%}); sample {given.sample}, seed {given.seed}")


if __name__ == "__main__":
    main()
