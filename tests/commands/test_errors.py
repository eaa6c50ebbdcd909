"""A user's mistake on the command line ends in two lines that name the argument; a mistake in code in a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_mip.cli import main

REGRESSION = str(Path(__file__).parents[1] / "configs" / "regression.yaml")
EVERYTHING = Path(REGRESSION).with_name("everything.yaml")
TIP = "tip: lightning-mip fit --help shows all arguments."
MISTAKES = {
    "class": (
        ["--model.init_args.primary.class_path=tests.tasks.Nett"],
        "model.primary of tests.tasks.Nett: module 'tests.tasks' has no attribute 'Nett'. Did you mean 'Net'?",
    ),
    "short class": (
        ["--model.init_args.h.lam.class_path=Unifrom"],
        "model.h of tests.tasks.Evaluated: Expected a dot import path string: Unifrom. Did you mean 'Uniform'?",
    ),
    "prior without its class": (
        ["--model.init_args.h={phi: {low: 0, high: 1}}"],
        "model.h of tests.tasks.Evaluated: a prior has no class_path, or h no name of a component. Write h as {lam: "
        "{class_path: Uniform, init_args: {low: 0, high: 1}}}.",
    ),
    "prior that is a number": (
        ["--model.init_args.h={lam: 0.5}"],
        "model.h of tests.tasks.Evaluated: the value does not fit. Write h as {lam: {class_path: Uniform, init_args: "
        "{low: 0, high: 1}}}.",
    ),
    "argument of a class without a signature": (
        [
            "--model.init_args.h.lam.class_path=FromTorch",
            "--model.init_args.h.lam.init_args.distribution.class_path=torch.distributions.Gumbel",
            '--model.init_args.h.lam.init_args.distribution.init_args={"loc": {"x": 1}, "scale": 1.0}',
        ],
        "model.h.distribution.loc of torch.Tensor: Option 'x' is not accepted; Expected a float.",
    ),
    "argument of a class": (
        ["--model.init_args.primary.init_args.widht=3"],
        "model.primary of tests.tasks.Net: Option 'widht' is not accepted. Did you mean 'width'?",
    ),
    "argument": (["--modle.init_args.eval_grid=3"], "unrecognized arguments: --modle.init_args.eval_grid=3."),
    "kind of a value": (["--trainer.max_epochs=many"], "trainer.max_epochs: got 'many'. Expected a int."),
}
REFUSED = {
    "prior": (
        ["--model.init_args.h.lam.init_args.low=2"],
        "Uniform(low=2.0, high=1.0, endpoints=0.0): expected finite bounds with low < high.",
    ),
    "precision of a prior": (
        ["--model.init_args.h.lam.init_args.low=1e6", "--model.init_args.h.lam.init_args.high=1000001"],
        "Uniform(low=1000000.0, high=1000001.0, endpoints=0.0): values as large, small or close as these are not told "
        "apart in single precision; let h be the difference from a fixed value, or in another unit.",
    ),
}


def message(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What the command prints as it ends with status 2, but for Lightning's word on the seed."""
    with pytest.raises(SystemExit) as end:
        main(["fit", f"--config={REGRESSION}", *arguments])
    assert end.value.code == 2
    return [line for line in capsys.readouterr().err.splitlines() if not line.startswith("Seed set")]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_arguments_is_told_with_what_exists(mistake: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, told = MISTAKES[mistake]
    assert message(arguments, capsys) == [f"lightning-mip fit: error: {told}", TIP]


def test_of_the_class_of_a_function_it_is_told_that_the_name_is_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(EVERYTHING.read_text().replace("norm: layer", "norm: x"))
    with pytest.raises(SystemExit):
        main(["fit", f"--config={config}"])
    told = "model: Expected a dot import path string: HyperNetwork. That class is there; it, or one of its init_args, "
    assert f"lightning-mip fit: error: {told}does not fit here.\n" in capsys.readouterr().err


@pytest.mark.parametrize("mistake", REFUSED)
def test_what_an_object_refuses_is_told_in_its_own_words(mistake: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, told = REFUSED[mistake]
    assert message(arguments, capsys) == [f"lightning-mip fit: error: {told}"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["diagnose", "--draws=two"], "argument --draws: invalid int value: 'two'"),
        (["sweep", "--stage=fit"], "argument --stage: invalid choice: 'fit' (choose from 'validate', 'test')"),
        (["export", "--out"], "argument --out: expected one argument"),
    ],
)
def test_a_mistake_in_an_option_of_another_command_is_told_without_the_usage(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    prog = f"lightning-mip {arguments[0]}"
    assert capsys.readouterr().err == f"{prog}: error: {told}\ntip: {prog} --help shows all arguments.\n"


def test_a_mistake_in_an_argument_of_the_module_names_the_command_that_was_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "last.ckpt").touch()
    run = [f"--config={REGRESSION}", f"--ckpt_path={tmp_path / 'last.ckpt'}"]
    with pytest.raises(SystemExit):
        main(["sweep", *run, "--model.init_args.eval_grid=many"])
    assert capsys.readouterr().err.splitlines() == [
        "lightning-mip sweep: error: model.eval_grid of tests.tasks.Evaluated: got 'many'. Expected a int; Expected "
        "a list.",
        "tip: lightning-mip sweep --help shows all arguments.",
    ]


ALL = "fit, validate, test, predict, diagnose, export, sweep"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], f"lightning-mip: error: give a command: {ALL}. lightning-mip --help explains them."),
        (
            ["validate", f"--config={REGRESSION}", "--ckpt_path=no.ckpt"],
            "lightning-mip validate: error: --ckpt_path no.ckpt: there is no such file.",
        ),
        *(
            (
                [command, "--ckpt_path=README.md"],
                f"lightning-mip {command}: error: --config is missing: give the config of the training run, "
                "--config=run.yaml.",
            )
            for command in ("sweep", "diagnose")
        ),
    ],
)
def test_what_is_missing_is_told_in_one_line(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines() == [told]


def test_a_command_that_there_is_not_is_told_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["swep", f"--config={REGRESSION}"])
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "lightning-mip: error: there is no command 'swep'; the commands are fit, validate, test, predict, diagnose, "
        "export, sweep. Did you mean 'sweep'?\n"
    )


def test_a_config_that_is_no_text_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.pt").write_bytes(b"PK\x80")
    with pytest.raises(SystemExit):
        main(["fit", f"--config={tmp_path / 'net.pt'}"])
    assert capsys.readouterr().err.splitlines() == [
        "lightning-mip: error: a config is no text file: 'utf-8' codec can't decode byte 0x80 in position 2: invalid "
        "start byte.",
        "tip: lightning-mip --help shows all arguments.",
    ]


def test_jsonargparse_tells_all_in_its_debug_mode(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEBUG", "true")
    with pytest.raises(Exception, match="Parser key"):
        main(["fit", f"--config={REGRESSION}", "--trainer.max_epochs=many"])
