"""Which head generates which tensor: by pattern, from Python, configs and checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from torch import Size, nn

import lightning_mip as mip
from lightning_mip import Chunked, LowRank
from lightning_mip.cli import main
from lightning_mip.head_choice import as_head, head_config, make_head
from lightning_mip.per_sample import run_per_sample
from lightning_mip.report import summarize
from tests.habits import InInit
from tests.module_kinds import KINDS, Reference, attach, build, exactly, gradients, loss, tensors
from tests.tasks import Net, loader

LAM = {"lam": mip.Uniform(0, 1)}
SHAPES = {
    "encoder.0.weight": Size([8, 9]),
    "encoder.0.bias": Size([8]),
    "encoder.1.weight": Size([8, 8]),
    "decoder.weight": Size([8, 8]),
    "scale": Size([]),
}
LISTED = "encoder.0.weight, encoder.0.bias, encoder.1.weight, decoder.weight, scale"


def kinds(head: Any) -> dict[str, str]:
    return make_head(head, 2, SHAPES, bias=False, init="fan_out").kinds


L2, L1, C4 = "LowRank(rank=2)", "LowRank(rank=1)", "Chunked(size=8, embedding=4)"


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("full", ["full"] * 5),
        (LowRank(2), [L2, "full", L2, L2, "full"]),
        ({"*.weight": LowRank(2), "*": "full"}, [L2, "full", L2, L2, "full"]),
        ({"*": LowRank(2)}, [L2, "full", L2, L2, "full"]),
        ({"encoder": LowRank(1), "*": "full"}, [L1, "full", L1, "full", "full"]),
        ({"encoder.0.*": LowRank(1), "*": LowRank(2)}, [L1, "full", L2, L2, "full"]),
        ({"decoder.*": "full", "*.weight": LowRank(2), "*": "full"}, [L2, "full", L2, "full", "full"]),
        ({"encoder.[1-9]*": Chunked(8, 4), "*.weight": LowRank(1), "*": "full"}, [L1, "full", C4, L1, "full"]),
        ({"_orig_mod.decoder": LowRank(1), "*": "full"}, ["full", "full", "full", L1, "full"]),
        ({"*.weight": "full", "*.bias": "full", "scale": "full", "*": LowRank(1)}, ["full"] * 5),
        ({"*.weight": "full", "*": LowRank(100)}, ["full"] * 5),
    ],
    ids=str,
)
def test_the_first_pattern_that_matches_a_tensor_or_a_module_around_it_chooses(head: Any, expected: list[str]) -> None:
    assert kinds(head) == dict(zip(SHAPES, expected, strict=True))


FORMS: dict[str, tuple[Any, Any]] = {
    "short name": ({"class_path": "LowRank", "init_args": {"rank": 2}}, LowRank(2)),
    "public name": ({"class_path": "lightning_mip.LowRank", "init_args": {"rank": 2}}, LowRank(2)),
    "module": ({"class_path": "lightning_mip.chunked.Chunked", "init_args": {"size": 9}}, Chunked(9)),
    "spec": (Chunked(9, 1), Chunked(9, 1)),
    "full": ("full", "full"),
    "patterns": (
        {"*.bias": "full", "*": {"class_path": "LowRank", "init_args": {"rank": 2}}},
        {"*.bias": "full", "*": LowRank(2)},
    ),
}


@pytest.mark.parametrize(("given", "expected"), FORMS.values(), ids=FORMS)
def test_a_config_in_plain_data_stands_for_a_head_and_back(given: Any, expected: Any) -> None:
    assert as_head(given) == expected
    config = head_config(given)
    assert yaml.safe_load(yaml.safe_dump(config, sort_keys=False)) == config
    assert as_head(config) == expected
    assert head_config(config) == config


HEADS: dict[str, Any] = {
    "low rank": LowRank(1),
    "chunked": Chunked(4, 1),
    "patterns": {"*weight": LowRank(1), "*": Chunked(3, 1)},
}


@pytest.mark.filterwarnings("ignore:No gradient came back")
@pytest.mark.parametrize("head", ["low rank", "chunked"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_network_runs_and_learns_with_every_kind_of_head(kind: str, head: str) -> None:
    net, inputs = build(kind, torch.float64)
    plain, _ = build(kind, torch.float64)
    hyper = attach(net, head=HEADS[head])
    reference = Reference(plain, hyper)
    with mip.at(net, lam=0.3):
        found = net(*inputs)
        loss(found).backward()
    expected = reference(*inputs, lam=0.3)
    loss(expected).backward()
    for one, other in zip(tensors(found), tensors(expected), strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(gradients([*net.parameters(), *hyper.parameters()]), reference.gradients())
    assert all(parameter.grad is not None for parameter in hyper.parameters())


@pytest.mark.parametrize("head", HEADS)
def test_h_per_sample_equals_a_loop_over_the_samples(head: str) -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(36, 2)).double()
    hyper = attach(net, head=HEADS[head], init=0.5)
    (injector,) = mip.injection.injectors(net)
    x, lam = torch.randn(3, 2, 5, 5, dtype=torch.float64), torch.linspace(0, 1, 3, dtype=torch.float64)
    parameters = [*net.parameters(), *hyper.parameters()]
    together = run_per_sample(injector, {"lam": lam}, (x,), {})
    found = torch.autograd.grad(together.square().sum(), parameters)
    singles = []
    for k in range(3):
        with injector.at({"lam": lam[k]}):
            singles.append(net(x[k : k + 1]))
    torch.testing.assert_close(together, torch.cat(singles))
    torch.testing.assert_close(found, torch.autograd.grad(torch.cat(singles).square().sum(), parameters))


@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_the_ratio_to_theta0_holds_tensor_by_tensor(head: str) -> None:
    squares: dict[str, float] = {}
    net = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 5)).double()
    for seed in range(60):
        torch.manual_seed(seed)
        hyper = attach(net, head=HEADS[head], init=0.25, hidden_sizes=(16, 32))
        for name, delta in hyper({"lam": 0.3}).items():
            squares[name] = squares.get(name, 0) + float((delta.norm() / net.get_parameter(name).norm()) ** 2) / 60
        mip.dehypernetize(net)
    assert {name: square**0.5 for name, square in squares.items()} == pytest.approx(
        dict.fromkeys(squares, 0.25), rel=0.35
    )


@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_the_size_of_the_change_does_not_depend_on_h(head: str) -> None:
    ratios = []
    for seed in range(60):
        torch.manual_seed(seed)
        hyper = mip.HyperNetwork(LAM, {"weight": Size([20, 20])}, head=HEADS[head])
        norms = hyper({"lam": torch.linspace(0, 1, 5)})["weight"].flatten(1).norm(dim=1)
        ratios.append(norms / norms.mean())
    # One draw of few coefficients favours some h, by about the root of their number; the mean over draws none.
    assert torch.stack(ratios).mean(0).tolist() == pytest.approx([1] * 5, abs=0.05)
    assert torch.stack(ratios).std() < 0.2


@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_without_encoding_and_theta0_weights_are_proportional_to_h_as_with_the_full_head(head: str) -> None:
    torch.manual_seed(0)
    hyper = mip.HyperNetwork(LAM, SHAPES, head=HEADS[head], residual=False, encoding="none").double()
    one, half = hyper({"lam": 1.0}), hyper({"lam": torch.tensor(0.5, dtype=torch.float64)})
    for name in SHAPES:
        torch.testing.assert_close(half[name], one[name] / 2)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("head", HEADS)
def test_the_plan_is_what_the_attach_then_makes(head: str, residual: bool) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 6))
    planned = mip.summary(net, h=LAM, head=HEADS[head], residual=residual)
    hyper = mip.hypernetize(net, LAM, head=HEADS[head], residual=residual)
    assert planned == summarize(hyper) == mip.summary(net)
    assert planned.parameters == sum(p.numel() for p in hyper.parameters())


def test_the_printed_table_names_the_heads() -> None:
    net = nn.Sequential(nn.Linear(30, 10), nn.Linear(10, 1))
    assert str(mip.summary(net, h=LAM, hidden_sizes=(8,), head={"*.weight": LowRank(2), "*": "full"})) == (
        "generated tensor               shape       numbers   share  head\n"
        "0.weight                    (10, 30)           300   93.5%  LowRank(rank=2)\n"
        "0.bias                         (10,)            10    3.1%  full\n"
        "1.weight                     (1, 10)            10    3.1%  full\n"
        "1.bias                          (1,)             1    0.3%  full\n"
        "all                                            321  100.0%\n"
        "hypernetwork: 833 parameters; training takes 0.0 MiB (weights 0.0, gradients 0.0, Adam 0.0)"
    )


def test_planning_for_a_large_network_counts_the_factors_alone() -> None:
    net = nn.Linear(10_000, 10_000, device="meta")
    sizes = {
        head: mip.summary(net, h=LAM, hidden_sizes=(8,), head=head).parameters for head in (LowRank(4), Chunked(1024))
    }
    rest = 2 * 8 + 8 + 1  # the trunk, and the gain
    assert sizes[LowRank(4)] == rest + 8 * (4 * 20_000 + 10_000)
    assert sizes[Chunked(1024)] == rest + 8 * 8 * (97_657 + 10) + 8 * 1024


def test_a_checkpoint_of_another_head_is_refused() -> None:
    def made(head: Any) -> mip.HyperNetwork:
        return mip.HyperNetwork(LAM, SHAPES, hidden_sizes=(4,), head=head)

    theirs = made({"encoder.*": LowRank(2), "*": "full"})
    ours = made({"encoder.0.*": LowRank(1), "*": "full"})
    text = (
        "The checkpoint is of another hypernetwork: the head of 'encoder.0.weight' is LowRank(rank=2) in the "
        "checkpoint and LowRank(rank=1) here; the head of 'encoder.1.weight' is LowRank(rank=2) in the checkpoint and "
        "full here. Build the same one first."
    )
    with pytest.raises(ValueError, match=exactly(text)):
        ours.load_state_dict(theirs.state_dict())
    same = made({"*.bias": "full", "encoder": LowRank(2), "*": "full"})
    same.load_state_dict(theirs.state_dict())


@pytest.mark.parametrize("head", HEADS)
def test_the_plug_in_trains_saves_resumes_and_exports_it(
    trainer: Callable[..., L.Trainer], tmp_path: Path, head: str
) -> None:
    def plugin() -> mip.Hypernetize:
        return mip.Hypernetize(
            "net", {"hparams.lam": mip.Uniform(0, 1)}, eval_grid=2, hidden_sizes=(4,), head=HEADS[head]
        )

    module = InInit()
    runner = trainer(max_epochs=1, callbacks=[plugin()])
    runner.fit(module, loader(), loader(seed=1))
    runner.save_checkpoint(tmp_path / "full.ckpt")
    state = torch.load(tmp_path / "full.ckpt", weights_only=True)["callbacks"]["Hypernetize{target: net}"]
    assert state["other_arguments"] == []
    assert as_head(state["arguments"]["head"]) == HEADS[head]

    resumed = InInit()
    trainer(max_epochs=2, callbacks=[plugin()]).fit(resumed, loader(), loader(seed=1), ckpt_path=tmp_path / "full.ckpt")
    mip.Hypernetize.export(tmp_path / "full.ckpt", {"hparams.lam": 0.7}, tmp_path / "plain.ckpt")
    exported = InInit.load_from_checkpoint(tmp_path / "plain.ckpt").net.state_dict()
    for name, value in mip.materialize(module.eval(), {"hparams.lam": 0.7}).state_dict().items():
        assert torch.equal(exported[name], value), name


@pytest.mark.parametrize("hypernet", ["a class", "a mapping"])
def test_a_config_of_the_command_line_chooses_it_in_the_order_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hypernet: str
) -> None:
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load((Path(__file__).parent / "configs" / "regression.yaml").read_text())
    low = {"class_path": "LowRank", "init_args": {"rank": 1}}
    chunked = {"class_path": "lightning_mip.Chunked", "init_args": {"size": 4, "embedding": 1}}
    arguments = {"hidden_sizes": [4], "head": {"last.weight": low, "*.weight": chunked, "*": "full"}}
    given = {"class_path": "HyperNetwork", "init_args": arguments} if hypernet == "a class" else arguments
    config["model"]["init_args"]["hypernet"] = given
    Path("run.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    expected = {
        "first.weight": "Chunked(size=4, embedding=1)",
        "first.bias": "full",
        "last.weight": "LowRank(rank=1)",
        "last.bias": "full",
    }
    assert main(["fit", "--config=run.yaml"]).model.hypernet.head.kinds == expected
    (saved,) = tmp_path.glob("**/config.yaml")
    again = main(["fit", f"--config={saved}", "--trainer.default_root_dir=again"])
    assert again.model.hypernet.head.kinds == expected
    (checkpoint,) = tmp_path.glob("again/**/*.ckpt")
    loaded = L.LightningModule.load_from_checkpoint(checkpoint, weights_only=True)
    with torch.no_grad():
        for name, tensor in loaded.hypernet({"lam": 0.3}).items():
            assert torch.equal(tensor, again.model.hypernet({"lam": 0.3})[name])


EXPECTED = (
    "expected 'full', LowRank(rank) or Chunked(size), or a mapping of patterns such as "
    "{'*.weight': LowRank(4), '*': 'full'}."
)


@pytest.mark.parametrize(
    ("head", "text"),
    [
        ("chunked", f"head is 'chunked', {EXPECTED}"),
        (None, f"head is None, {EXPECTED}"),
        (LowRank, f"head is <class 'lightning_mip.low_rank.LowRank'>, {EXPECTED}"),
        ({}, "head is an empty mapping, expected patterns such as {'*.weight': LowRank(4), '*': 'full'}."),
        ({"*": 4}, "head['*'] is 4, expected 'full', LowRank(rank) or Chunked(size)."),
        ({"class_path": "torch.nn.Linear"}, "head names the class 'torch.nn.Linear', expected LowRank or Chunked."),
        (
            {"*": {"class_path": "HighRank", "init_args": {"rank": 4}}},
            "head['*'] names the class 'HighRank', expected LowRank or Chunked.",
        ),
        (
            {"class_path": "LowRank", "init_args": {"r": 4}},
            "head is {'class_path': 'LowRank', 'init_args': {'r': 4}}, but LowRank.__init__() got an unexpected "
            "keyword argument 'r'; LowRank takes rank.",
        ),
        (
            {"*.wieght": LowRank(4), "*": "full"},
            f"head has the pattern '*.wieght', which matches no generated tensor; there are {LISTED}.",
        ),
        (
            {"encodr": LowRank(4), "*": "full"},
            f"head has the pattern 'encodr', which matches no generated tensor; there are {LISTED}. Did you mean "
            "'encoder'?",
        ),
        (
            {"*": "full", "*.weight": LowRank(4)},
            "head has the pattern '*.weight', but earlier patterns match all of its tensors (encoder.0.weight, "
            "encoder.1.weight, decoder.weight), and the first match wins; write it before them.",
        ),
        (
            {"*.weight": LowRank(4)},
            "head names no kind for encoder.0.bias, scale; add a last pattern for the rest, '*': 'full'.",
        ),
    ],
)
def test_a_wrong_choice_says_what_there_is(head: Any, text: str) -> None:
    with pytest.raises(ValueError, match=exactly(text)):
        mip.HyperNetwork(LAM, SHAPES, head=head)


def test_a_network_of_the_task_learns_with_each_head() -> None:
    x, y = loader(16, 16).dataset.tensors

    def error(head: Any, steps: int) -> float:
        torch.manual_seed(0)
        net = Net(16)
        hyper = attach(net, head=head, init="zero", hidden_sizes=(16,))
        optimizer = torch.optim.Adam(hyper.parameters(), 0.02)  # theta0 stays, so the head alone learns
        found = torch.zeros(())
        for step in range(steps + 1):
            optimizer.zero_grad()
            with mip.at(net, lam=step % 2):
                found = (net(x) - (1 if step % 2 else -1) * y).square().mean()
                found.backward()
            optimizer.step()
        return found.item()

    for head in ("full", LowRank(2), Chunked(8, 4)):
        assert error(head, 300) < 0.2 * error(head, 0), head
