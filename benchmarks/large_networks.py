"""Large networks, hypernetized whole by the heads made for them: step time, memory and size against the plain network.

    python -m benchmarks.large_networks --out docs/benchmarks/large_networks.md
    python -m benchmarks.large_networks --networks resnet18 --heads plain low_rank --steps 2

A ResNet-18 (11 million weights) and a vision transformer of the size of ViT-B (86 million), trained by fused Adam on
random images, so few and small that the time per weight shows, not the time per image: with larger batches the ratios
to the plain network come closer to 1. Each variant runs in a process of its own, in rounds, so that other work on the
machine hits all of them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lightning_mip as mip
from benchmarks import tables
from benchmarks.primaries import resnet18
from benchmarks.resident import resident
from benchmarks.timing import median, milliseconds

STEPS, ROUNDS, CLASSES = 3, 3, 1000
HEADS: dict[str, Any] = {
    "plain": None,
    "full": "full",
    "low_rank": mip.LowRank(4),
    "chunked": mip.Chunked(1024),
}
HEADER = ("head", "numbers", "step s", "x plain", "peak MiB", "above imports", "x plain", "built s")
NOTES = (
    "- *head*: `plain` is the network alone; `full`: the head that generates each number by itself, where it fits in "
    f"memory; `low_rank`: {HEADS['low_rank']!r}; `chunked`: {HEADS['chunked']!r}.\n"
    "- *numbers*: trained ones, of network and hypernetwork.\n"
    "- *step s*: median of the steps after the first two, each with a new h; all numbers are medians over rounds.\n"
    "- *peak MiB*: peak resident memory of the process; *above imports*: less what it held after the imports.\n"
    "- *built s*: time to make network and hypernetwork.",
)


class VisionTransformer(nn.Module):
    """A vision transformer: 16 x 16 patches, a class token, learned positions; by default of the size of ViT-B.

    Args:
        size: height and width of the images.
        width: of the tokens.
        depth: layers.
        hidden: width inside the layers.
        heads: of the attention.
    """

    def __init__(self, size: int, width: int = 768, depth: int = 12, hidden: int = 3072, heads: int = 12) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 1 + (size // 16) ** 2, width) * 0.02)
        arguments: dict[str, Any] = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        self.layers = nn.Sequential(
            *(nn.TransformerEncoderLayer(width, heads, hidden, **arguments) for _ in range(depth))
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1) + self.positions
        return self.head(self.norm(self.layers(tokens)[:, 0]))


# Name -> (network, images per step, height and width of an image).
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "resnet18": (lambda: resnet18(64, CLASSES, small_images=False), 16, 96),
    "vit_b": (lambda: VisionTransformer(96), 8, 96),
    "tiny": (lambda: VisionTransformer(32, 64, 2, 128, 4), 2, 32),
}


def train_alone(network: str, head: str, steps: int, hidden_sizes: list[int] | None) -> dict[str, float]:
    """Train in this process, which has done nothing before, and read time and memory."""
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", message="Norm layers keep running statistics")
    imports = resident(peak=False)
    make, images, size = NETWORKS[network]
    made: dict[str, Any] = {}
    built = milliseconds(lambda: made.update(net=make(), hyper=None)) / 1e3
    net = made["net"]
    arguments = {} if hidden_sizes is None else {"hidden_sizes": hidden_sizes}
    space = mip.HSpace({"h": mip.Uniform(0, 1)})
    parameters = list(net.parameters())
    if HEADS[head] is not None:
        built += (
            milliseconds(lambda: made.update(hyper=mip.hypernetize(net, space, head=HEADS[head], **arguments))) / 1e3
        )
        parameters += made["hyper"].parameters()
    optimizer = torch.optim.Adam(parameters, 1e-4, fused=True)
    batch, targets = torch.randn(images, 3, size, size), torch.randint(CLASSES, (images,))

    def loss() -> None:
        nn.functional.cross_entropy(net(batch), targets).backward()

    def step(count: int) -> None:
        optimizer.zero_grad()
        if made["hyper"] is None:
            loss()
        else:
            with mip.at(net, space.sample(seed=0, step=count)):
                loss()
        optimizer.step()

    times = [milliseconds(lambda count=count: step(count)) for count in range(2 + steps)]  # type: ignore[misc]
    peak = resident(peak=True)
    numbers = sum(parameter.numel() for parameter in parameters)
    return {
        "step": median(times[2:]) / 1e3,
        "numbers": numbers,
        "built": built,
        "peak": peak,
        "above": peak - imports,
    }


def in_own_process(network: str, head: str, given: argparse.Namespace) -> dict[str, float] | str:
    """Run `train_alone` in a new process; says why where it cannot be."""
    task = {"network": network, "head": head, "steps": given.steps, "hidden_sizes": given.hidden_sizes}
    command = [sys.executable, "-m", "benchmarks.large_networks", "--child", json.dumps(task)]
    command += ["--threads", str(torch.get_num_threads())]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if "MemoryError" in done.stderr:
        return next(line for line in done.stderr.splitlines() if line.startswith("Training this hypernetwork takes"))
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{network} {head}: {found['step']:.2f} s, {found['peak']:.0f} MiB", file=sys.stderr, flush=True)
    return found


def in_rounds(network: str, given: argparse.Namespace) -> dict[str, dict[str, float] | str]:
    """Head -> medians over the rounds, in each of which every head has its turn."""
    rounds = [{head: in_own_process(network, head, given) for head in given.heads} for _ in range(given.rounds)]
    return {head: medians([own[head] for own in rounds]) for head in given.heads}


def medians(runs: list[dict[str, float] | str]) -> dict[str, float] | str:
    """Key -> the middle one of the runs; why not, where one could not be."""
    done = [run for run in runs if not isinstance(run, str)]
    refused = [run for run in runs if isinstance(run, str)]
    return refused[0] if refused else {key: median([run[key] for run in done]) for key in done[0]}


def section(network: str, found: dict[str, dict[str, float] | str]) -> str:
    """Heading and table of one network."""
    rows, refused = [], []
    plain: Any = found.get("plain")
    for head, own in found.items():
        if isinstance(own, str):
            refused.append(f"`{head}` does not fit in memory: {own.split('. ')[0]}.")
            continue
        ratios = [own[key] / plain[key] if plain else "" for key in ("step", "above")]
        numbers, peak, above = f"{own['numbers'] / 1e6:.1f} M", f"{own['peak']:.0f}", f"{own['above']:.0f}"
        rows.append([head, numbers, own["step"], ratios[0], peak, above, ratios[1], own["built"]])
    _, images, size = NETWORKS[network]
    heading = f"## {network}: batch {images} x 3 x {size} x {size}"
    return "\n\n".join([heading, tables.table(HEADER, rows), *refused])


def main(argv: Sequence[str] | None = None) -> str:
    """Measure, print and write the tables; with ``--child`` measure this process."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description="Step time and memory of large networks, hypernetized whole.")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["resnet18", "vit_b"])
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--hidden-sizes", type=int, nargs="+", help="of the trunk; default: the package's")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="file to write the page to")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    if given.child:
        print(json.dumps(train_alone(**json.loads(given.child))))
        return ""
    sections, text = [], ""
    for network in given.networks:
        sections.append(section(network, in_rounds(network, given)))
        print(f"{sections[-1]}\n", flush=True)
        text = tables.page("Large networks", "large_networks", argv, NOTES, sections)
        tables.write(text, given.out)
    return text


if __name__ == "__main__":
    main()
