"""The size report: what would be generated and the memory that training takes, without allocating it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lightning_mip as mip
from lightning_mip import report as report_module
from lightning_mip.report import Summary, available_memory, summarize
from tests.module_kinds import KINDS, attach, build, exactly

LAM = {"lam": mip.Uniform(0, 1)}
MIB = 2**20


class LargestTensor(TorchDispatchMode):
    """Records the size in bytes of the largest tensor that holds memory."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and not leaf.is_meta:
                self.nbytes = max(self.nbytes, leaf.nbytes)
        return result


def test_the_printed_table_shows_shapes_shares_and_memory(capsys: pytest.CaptureFixture[str]) -> None:
    net = nn.Sequential(nn.Linear(30, 10), nn.Linear(10, 1))
    text = (
        "generated tensor               shape       numbers   share\n"
        "0.weight                    (10, 30)           300   93.5%\n"
        "0.bias                         (10,)            10    3.1%\n"
        "1.weight                     (1, 10)            10    3.1%\n"
        "1.bias                          (1,)             1    0.3%\n"
        "all                                            321  100.0%\n"
        "hypernetwork: 50,545 parameters; training takes 0.8 MiB (weights 0.2, gradients 0.2, Adam 0.4)"
    )
    found = mip.summary(net, h=LAM, hidden_sizes=(16, 64, 128))
    assert str(found) == text
    assert capsys.readouterr().out == text + "\n"


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_plan_is_what_the_attach_then_makes(kind: str, residual: bool) -> None:
    net, _ = build(kind)
    planned = mip.summary(net, h=LAM, hidden_sizes=(4, 5), residual=residual)
    hyper = attach(net, residual=residual)
    assert planned == summarize(hyper) == mip.summary(net)
    assert planned.generated == sum(p.numel() for p in net.parameters())
    assert planned.parameters == sum(p.numel() for p in hyper.parameters())


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"include": "weight"},
        {"exclude": ["bias"], "force": True},
        {"hidden_sizes": [8], "norm": "layer", "dropout": 0.1},
        {"norm": "weight", "encoding": "z|1-z"},
        {"init": 0.1, "activation": nn.Tanh},
        {"trunk": nn.Linear(2, 3)},
        {"residual": False, "init": "zero"},
    ],
    ids=str,
)
def test_the_plan_takes_the_arguments_of_the_attach(arguments: dict[str, Any]) -> None:
    net = nn.Linear(3, 2)
    planned = mip.summary(net, h=LAM, **arguments)
    assert planned == summarize(mip.hypernetize(net, LAM, **arguments))


@pytest.mark.parametrize(
    "prior",
    [
        mip.Simplex(3),
        mip.Categorical(3),
        mip.Normal(),
        torch.distributions.LogNormal(0.0, 1.0),
        torch.distributions.Uniform(torch.tensor(0.0), torch.tensor(2.0)),
        {"class_path": "Uniform", "init_args": {"low": 0, "high": 1}},
    ],
    ids=lambda prior: type(prior).__name__,
)
def test_the_plan_takes_every_way_of_giving_a_prior(prior: Any) -> None:
    net = nn.Linear(3, 2)
    expected = summarize(mip.hypernetize(nn.Linear(3, 2), {"a": prior}))
    assert mip.summary(net, h={"a": prior}) == expected
    assert mip.summary(net, h=mip.HSpace({"a": prior})) == expected


def test_the_plan_of_a_given_hypernetwork_is_its_own_size() -> None:
    net = nn.Linear(3, 2)
    hyper = mip.HyperNetwork(LAM, {"weight": net.weight.shape, "bias": net.bias.shape}, hidden_sizes=(7,))
    assert mip.summary(net, h=LAM, hypernet=hyper) == summarize(hyper)


@pytest.mark.parametrize(("dtype", "nbytes"), [(torch.bfloat16, 4), (torch.float32, 4), (torch.float64, 8)], ids=str)
def test_the_plan_counts_bytes_in_the_precision_of_the_hypernetwork(dtype: torch.dtype, nbytes: int) -> None:
    found = mip.summary(nn.Linear(3, 2, dtype=dtype), h=LAM)
    assert found.weight_bytes == nbytes * found.parameters
    assert found.training_bytes == 4 * found.weight_bytes


def test_planning_for_a_large_network_allocates_nothing_large() -> None:
    net = nn.Sequential(nn.Linear(10_000, 10_000, device="meta"), nn.Linear(10_000, 10, device="meta"))
    with LargestTensor() as largest:
        found = mip.summary(net, h=LAM, hidden_sizes=(16, 64, 128))
    assert found.generated == 10_000 * 10_000 + 10_000 + 10_000 * 10 + 10
    assert found.weight_bytes > 40 * 2**30
    assert largest.nbytes < 2**16


def test_planning_leaves_the_network_and_the_random_state_as_they_were() -> None:
    net = nn.Linear(3, 2)
    state = torch.get_rng_state()
    mip.summary(net, h=LAM)
    assert torch.equal(torch.get_rng_state(), state)
    net(torch.ones(1, 3))


def test_an_empty_tensor_has_no_share() -> None:
    assert "empty                           (0,)             0    0.0%" in str(
        Summary({"empty": torch.Size([0])}, 0, 0)
    )


def test_a_long_name_widens_the_table() -> None:
    name = "encoder.layers.11.attention.output.weight"
    lines = str(Summary({name: torch.Size([2]), "b": torch.Size([2])}, 1, 4)).splitlines()[:-1]
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize(("limit", "expected"), [("max\n", 8192), ("4096\n", 4096), ("16384\n", 8192), (None, 8192)])
def test_memory_of_a_cpu_is_what_is_installed_or_allowed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str | None, expected: int
) -> None:
    sizes = {"SC_PHYS_PAGES": 2, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(report_module.os, "sysconf", sizes.__getitem__)
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit)
    monkeypatch.setattr(report_module, "_CGROUP_LIMIT", tmp_path / "memory.max")
    assert available_memory(torch.device("cpu")) == expected


def test_memory_of_an_unknown_device_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_memory(torch.device("meta")) is None
    monkeypatch.setattr(report_module.os, "sysconf_names", {})
    assert available_memory(torch.device("cpu")) is None


def test_memory_of_a_gpu_is_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5 * MIB, 80 * MIB))
    assert available_memory(torch.device("cuda:0")) == 5 * MIB


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: mip.summary(nn.Linear(2, 2)),
            ValueError,
            "Linear is not hypernetized; call mip.hypernetize on it first.",
        ),
        (
            lambda: mip.summary(nn.Linear(2, 2), include="weight"),
            TypeError,
            "h is not given, so there is nothing to plan with include; pass h=.",
        ),
        (
            lambda: mip.summary(nn.Linear(2, 2), h=LAM, include="x"),
            ValueError,
            "include='x' matches no parameter; there are weight, bias.",
        ),
        (
            lambda: mip.summary(nn.Linear(2, 2), h={}),
            ValueError,
            "h is empty, expected at least one component such as {'lam': Uniform(0, 1)}.",
        ),
        (
            lambda: mip.summary(nn.LazyLinear(2), h=LAM),
            TypeError,
            "weight of the lazy LazyLinear has no shape yet; run the network once on a batch first.",
        ),
    ],
)
def test_a_wrong_call_says_what_to_do(call: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=exactly(text)):
        call()
