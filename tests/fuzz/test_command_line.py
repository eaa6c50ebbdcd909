"""The command line with any config and any arguments: it runs, or ends with status 2 and a line or two."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lightning_mip.cli import main
from tests.fuzz.oracle import Refused, check_text, fuzz
from tests.fuzz.values import texts

CONFIGS = Path(__file__).parents[1] / "configs"
REGRESSION, EVERYTHING = (
    yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) for name in ("regression", "everything")
)
SHORT = {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 1, "enable_checkpointing": False}


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty working directory."""
    outer, inner = Path.cwd(), tmp_path_factory.mktemp("fuzz")
    os.chdir(inner)
    yield inner
    os.chdir(outer)


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> str:
    """A checkpoint of a run of ``regression.yaml``."""
    main(["fit", f"--config={CONFIGS / 'regression.yaml'}", f"--trainer.default_root_dir={folder / 'run'}"])
    (path,) = folder.glob("run/**/*.ckpt")
    return str(path)


def command(arguments: list[str], *names: str) -> Any:
    """Run a command; what it returns, or `Refused`."""
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            for message in ("Checkpoint directory", "Trying to infer", "No seed found", "The dirpath has changed"):
                warnings.filterwarnings("ignore", message=message)
            return main(arguments)
    except SystemExit as end:
        status = end.code
    if status in (0, None):
        return None
    assert status == 2
    lines = [line for line in told.getvalue().splitlines() if not line.startswith(("Seed set", "Restoring states"))]
    return check_text("\n".join(lines), names or ("",))


plain: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 9),
    st.sampled_from([10**20, 1e-3, 0.5, -0.5, 1e30, float("nan"), float("inf")]),
    texts.filter(str.isprintable),
    st.sampled_from(
        ["Uniform", "Normal", "Categorical", "tests.tasks.Net", "torch.nn.Linear", "tests.tasks.Nett", "grid"]
    ),
    st.sampled_from(["*.weight", "first", "full", "fan_out", "zero", "none", "z|1-z", "layer", "paper", "lam", "mip"]),
    st.sampled_from([{"class_path": "Uniform", "init_args": {"low": 0, "high": 1}}, {"class_path": "Uniform"}]),
    st.sampled_from([{"class_path": "LowRank", "init_args": {"rank": 1}}, {"lam": 0.5}, [{"lam": 0.5}], {"lam": 5}]),
    st.lists(st.integers(-1, 3), max_size=2),
    st.dictionaries(
        st.sampled_from(["a", "lam", "class_path", "init_args"]), st.integers(0, 2) | st.just("x"), max_size=2
    ),
)


def paths(config: Any, start: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All places of a config."""
    items = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else []
    return [path for key, value in items for path in [(*start, key), *paths(value, (*start, key))]]


def place(config: Any, path: tuple[Any, ...]) -> Any:
    """What holds the last part of a path."""
    for key in path[:-1]:
        config = config[key]
    return config


# What else may be set in a HyperLightningModule, and in its hypernetwork.
FURTHER = ["eval_grid", "predict_h", "draws_per_batch", "per_sample", "h_from_batch", "include", "exclude", "hypernet"]
INSIDE = ["hidden_sizes", "norm", "dropout", "head", "encoding", "encoding_norm", "residual", "init", "scale", "trunk"]


# What stands for the argument above it.
PARTS = ("class_path", "init_args")
# What else an error about an argument may call it: what it is, or what it holds.
ALSO = {
    "include": ["pattern"],
    "exclude": ["pattern"],
    "predict_h": ["h"],
    "eval_grid": ["h", "grid"],
    "h_from_batch": ["h"],
    "encoding_norm": ["encoding norm"],
    "primary": ["nothing to generate"],
    # Without a class_path they may be made, but lack what a run needs.
    "model": ["training_step"],
    "data": ["train_dataloader"],
}


def called(path: tuple[Any, ...]) -> list[str]:
    """What an error may call the innermost argument on a path; a component of h also by what it is a component of."""
    arguments = [part for part in path if isinstance(part, str) and part not in PARTS]
    # jsonargparse does not say which argument of the class that stands for hypernet it is.
    inside = ["HyperNetwork"] if "hypernet" in arguments else []
    inside += [name for name in ("h", "predict_h") if name in arguments]
    return [arguments[-1], *inside, *ALSO.get(arguments[-1], [])]


def itself(value: Any) -> list[str]:
    """What an error may call a value: a text, or the class that it names, as it is given."""
    named = value.get("class_path") if isinstance(value, dict) else value
    return [named] if isinstance(named, str) and named else []


@st.composite
def mutated(draw: st.DrawFn, config: Any) -> tuple[Any, list[str]]:
    """A config with one place changed, and the words of which an error about that has to hold one."""
    config = copy.deepcopy(config)
    model = config["model"]["init_args"]
    where = draw(st.integers(0, 3))
    if where == 0:
        name = draw(st.sampled_from(FURTHER))
        model[name] = value = draw(plain)
        return config, [*called((name,)), *itself(value)]
    if where == 1 and "class_path" not in model["hypernet"]:
        name = draw(st.sampled_from(INSIDE))
        model["hypernet"][name] = value = draw(plain)
        return config, [*called((name,)), *itself(value)]
    path = draw(st.sampled_from([path for path in paths(config) if path[0] != "trainer"]))
    holder, key = place(config, path), path[-1]
    change = draw(st.sampled_from(["replace", "replace", "drop", "rename", "list", "nest"]))
    names = called(path)
    if change == "replace":
        holder[key] = value = draw(plain)
        names += itself(value)
    elif change == "drop":
        del holder[key]
    elif change == "rename" and isinstance(holder, dict):
        new = draw(texts.filter(str.isprintable) | st.just(f"{key}s"))
        holder[new] = holder.pop(key)
        names += [new, str(yaml.safe_load(yaml.safe_dump(new)))]
    elif change == "list":
        holder[key] = [holder[key]]
    else:
        holder[key] = {key: holder[key]}
    if key == "class_path" and not isinstance(holder.get(key), str | None):
        names += ["unhashable type", "callable object"]  # all that jsonargparse says
    return config, names


def fits(config: Any, names: list[str]) -> None:
    config["trainer"] = {**REGRESSION["trainer"], **SHORT}
    Path("fuzz.yaml").write_text(yaml.safe_dump(config))
    done = command(["fit", "--config=fuzz.yaml"])
    if isinstance(done, Refused):
        words = [rf"(?<!\w){re.escape(name)}(?!\w)" for name in names]
        assert any(re.search(word, done.text) for word in words), f"none of {names} is named: {done.text}"
    elif done is not None:
        assert done.trainer.state.finished
        assert all(parameter.isfinite().all() for parameter in done.model.parameters())


@fuzz(12, shrink=False)
@given(case=mutated(REGRESSION))
def test_a_config_with_one_mistake(case: tuple[Any, list[str]]) -> None:
    fits(*case)


@fuzz(8, shrink=False)
@given(case=mutated(EVERYTHING))
def test_a_config_of_every_argument_with_one_mistake(case: tuple[Any, list[str]]) -> None:
    fits(*case)


CALLBACKS = {
    "PerHMetrics": ["bins"],
    "SampleH": ["seed", "strategy", "same_on_all_ranks"],
    "MagnitudeMonitor": ["every_n_steps"],
    "Hypernetize": [
        "target",
        "h",
        "include",
        "exclude",
        "bind",
        "eval",
        "eval_grid",
        "predict_h",
        "sampler",
        "hypernet",
    ],
}


@fuzz(8, shrink=False)
@given(kind=st.sampled_from(sorted(CALLBACKS)), data=st.data())
def test_a_callback_of_any_arguments(kind: str, data: st.DataObject) -> None:
    config = copy.deepcopy(REGRESSION)
    arguments = {}
    if kind == "Hypernetize":
        config["model"] = {"class_path": "tests.habits.InInit"}
        prior = {"class_path": "Uniform", "init_args": {"low": 0, "high": 1}}
        arguments = {"target": "net", "h": {"hparams.lam": prior}, "hypernet": {"hidden_sizes": [2]}}
    name = data.draw(st.sampled_from(CALLBACKS[kind]))
    arguments[name] = data.draw(plain)
    config["trainer"] |= {**SHORT, "callbacks": [{"class_path": kind, "init_args": arguments}]}
    Path("fuzz.yaml").write_text(yaml.safe_dump(config))
    done = command(["fit", "--config=fuzz.yaml"], name, "h has", "h is", "h[", "HyperLightningModule", "Uniform")
    assert isinstance(done, Refused) or done.trainer.state.finished


option_values = st.sampled_from(
    [
        "lam=0.3",
        "lam=3",
        "lam=",
        "=",
        "lam",
        "0.5",
        "lam=nan",
        "lam=0:1:3",
        "lam=0.1,lam=0.2",
        "phi=1",
        "lam=at:0.1,0.2",
        "val_loss=min",
        "val_loss",
        "loss=max",
        "-1",
        "0",
        "2",
        "x",
        "",
        "net.pt",
        "net.x",
        "state_dict",
        "test",
        "train",
    ]
) | texts.filter(lambda text: text.isprintable())
OPTIONS = {
    "export": ["--h", "--out", "--format", "--recalibrate", "--config", "--x", "--data.batch_size"],
    "diagnose": ["--draws", "--batches", "--part", "--metric", "--mode", "--out", "--x"],
    "sweep": ["--grid", "--best", "--stage", "--out", "--x", "--model.init_args.eval_grid"],
}
GIVEN = {
    "export": ["--h=lam=0.3", "--out=net.pt"],
    "diagnose": ["--config=CONFIG", "--draws=2", "--batches=1"],
    "sweep": ["--config=CONFIG", "--grid=lam=2"],
}


@fuzz(10, shrink=False)
@given(name=st.sampled_from(sorted(OPTIONS)), data=st.data())
def test_a_command_with_any_options(checkpoint: str, name: str, data: st.DataObject) -> None:
    options = data.draw(st.lists(st.tuples(st.sampled_from(OPTIONS[name]), option_values), max_size=2))
    given = [option.replace("CONFIG", str(CONFIGS / "regression.yaml")) for option in GIVEN[name]]
    replaced = {option for option, _ in options}
    arguments = [f"--ckpt_path={checkpoint}", *(text for text in given if text.partition("=")[0] not in replaced)]
    names = [option.rpartition(".")[2].lstrip("-") for option in replaced]
    done = command([name, *arguments, *(f"{option}={value}" for option, value in options)], *names, "suffix")
    if not replaced:
        assert not isinstance(done, Refused | None)


@fuzz(10, shrink=False)
@given(name=st.sampled_from(["fit", "validate", "predict", "export", "diagnose", "sweep", "x"]), words=st.lists(texts))
def test_a_command_with_any_words(name: str, words: list[str]) -> None:
    assert isinstance(command([name, *words], "command", "arguments", "argument", "ckpt_path"), (Refused, type(None)))
