"""The benchmark of large networks: their sizes, and that each head trains one and brings back its numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import lightning_mip as mip
from benchmarks import large_networks
from benchmarks.large_networks import HEADS, NETWORKS, VisionTransformer, train_alone

GENERATED = {"resnet18": 11_689_512, "vit_b": 86_444_776}


@pytest.mark.parametrize("network", GENERATED)
def test_the_networks_have_the_sizes_that_the_page_says(network: str) -> None:
    with torch.device("meta"):
        net = NETWORKS[network][0]()
    assert sum(parameter.numel() for parameter in net.parameters()) == GENERATED[network]
    for head in ("low_rank", "chunked"):
        report = mip.summary(net, h={"h": mip.Uniform(0, 1)}, head=HEADS[head], hidden_sizes=(16, 64, 128))
        assert report.generated == GENERATED[network]
        assert report.parameters < 2 * GENERATED[network]  # 128 times with the full head


def test_at_its_default_it_is_a_vit_b() -> None:
    with torch.device("meta"):
        net = VisionTransformer(224)
    assert sum(parameter.numel() for parameter in net.parameters()) == 86_567_656  # of torchvision's vit_b_16


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.filterwarnings("ignore:Norm layers")
def test_each_head_trains(head: str) -> None:
    found = train_alone("tiny", head, 1, [4])
    assert found["step"] > 0
    plain = sum(parameter.numel() for parameter in NETWORKS["tiny"][0]().parameters())
    assert (found["numbers"] > plain) == (head != "plain")


@pytest.mark.slow
def test_the_page_holds_a_row_for_each_head(tmp_path: Path) -> None:
    out = tmp_path / "page.md"
    heads = ["plain", "low_rank"]
    text = large_networks.main(
        ["--networks", "tiny", "--heads", *heads, "--steps", "1", "--threads", "1", "--out", str(out)]
    )
    assert out.read_text() == text
    assert [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")][2:] == heads
