"""The HyperMorph example: network, loss and measures against their definitions, the command on a tiny budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

import lightning_mip as mip
from examples.hypermorph import run
from examples.hypermorph.data import IXI, Pair
from examples.hypermorph.losses import DISTANCES, mse, ncc, smoothness
from examples.hypermorph.measures import folded, overlap, warp_labels
from examples.hypermorph.network import Registration, integrate, warp
from examples.hypermorph.structures import choose_by_structure, dice, masks, merged
from examples.hypermorph.task import HyperMorph, loss_of
from lightning_mip.cli import main
from tests.examples.test_hypermorph_data import write_discs

HERE = Path(run.__file__).parent
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
ON_CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1"]
SMALL = [*QUIET, *ON_CPU, "--trainer.max_epochs", "1", "--data.steps_per_epoch", "2", "--data.slices", "[1]"]
VALIDATED = ["--trainer.check_val_every_n_epoch", "1", "--model.eval_grid", "2"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def linear(matrix: Any, side: int = 17) -> torch.Tensor:
    """The field ``matrix @ (x - center)`` of one pair, x first, in float64."""
    axis = torch.arange(side, dtype=torch.float64) - side // 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.einsum("ij,jhw->ihw", torch.as_tensor(matrix, dtype=torch.float64), torch.stack([x, y]))[None]


def network() -> Registration:
    return Registration(widths=(4, 4))


def discs(tmp_path: Path, **arguments: Any) -> IXI:
    write_discs(tmp_path)
    data = IXI(tmp_path, **arguments)
    data.setup()
    return data


# --- spatial transformer and integration


def test_warp_moves_in_pixels() -> None:
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    right = torch.zeros(1, 2, 4, 4)
    right[:, 0] = 1
    torch.testing.assert_close(warp(image, torch.zeros(1, 2, 4, 4)), image)
    torch.testing.assert_close(warp(image, right)[..., :-1], image[..., 1:])
    torch.testing.assert_close(warp(image, right.flip(1))[..., :-1, :], image[..., 1:, :])
    torch.testing.assert_close(warp(image, right / 4)[..., :-1], image[..., :-1] + 0.25)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_flow_that_is_not_finite_shows_in_the_image(wrong: float) -> None:
    flow = torch.full((1, 2, 80, 80), wrong, requires_grad=True)
    warped = warp(torch.ones(1, 1, 80, 80), flow)
    assert warped.isnan().all()
    warped.sum().backward()


def test_warped_labels_stay_labels() -> None:
    labels = torch.tensor([[[0, 3, 7], [0, 3, 7], [0, 3, 7]]], dtype=torch.uint8)
    flow = torch.zeros(1, 2, 3, 3)
    flow[:, 0] = 0.6
    moved = warp_labels(labels, flow)
    assert moved.dtype == torch.uint8
    assert moved[0, 0].tolist() == [3, 7, 7]


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_scaling_and_squaring_composes_small_steps(steps: int) -> None:
    # Of a linear field that shrinks, each small step is a map that bilinear interpolation takes without error.
    rate = -0.7
    flow = integrate(linear([[rate, 0], [0, rate]]), steps)
    expected = (1 + rate / 2**steps) ** 2**steps - 1
    torch.testing.assert_close(flow, linear([[expected, 0], [0, expected]]))


def test_integration_converges_to_the_flow_of_the_velocity() -> None:
    velocity = linear([[-0.5, 0.3], [-0.3, -0.5]])
    exact = linear(torch.linalg.matrix_exp(torch.tensor([[-0.5, 0.3], [-0.3, -0.5]])) - torch.eye(2))
    errors = [float((integrate(velocity, steps) - exact).abs().max()) for steps in (2, 4, 6, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01 * float(exact.abs().max())


def test_without_integration_steps_the_velocity_is_the_displacement() -> None:
    velocity = torch.randn(2, 2, 6, 6)
    assert torch.equal(integrate(velocity, 0), velocity)


def test_integration_unfolds_what_a_displacement_folds() -> None:
    rough = torch.nn.functional.interpolate(6 * torch.randn(3, 2, 6, 6), size=(64, 64), mode="bicubic")
    window = torch.hann_window(64, periodic=False)
    velocity = rough * window * window[:, None]  # nothing comes in from outside
    assert (folded(velocity) > 0.005).all()
    assert folded(integrate(velocity, 8)).tolist() == [0, 0, 0]


def test_a_new_network_moves_nothing() -> None:
    moving, fixed = torch.rand(2, 2, 1, 20, 16)
    for steps in (0, 7):
        with torch.no_grad():
            found = Registration((4, 4), integration_steps=steps)(moving, fixed)
        assert float(found.flow.abs().max()) < 1e-3
        torch.testing.assert_close(found.warped, moving, atol=1e-3, rtol=0)


def test_the_network_moves_by_the_flow_that_it_gives() -> None:
    net = Registration((4, 4), integration_steps=3)
    torch.nn.init.normal_(net.flow.weight)
    moving, fixed = torch.rand(2, 2, 1, 16, 16)
    with torch.no_grad():
        found = net(moving, fixed)
    torch.testing.assert_close(found.flow, integrate(found.velocity, 3))
    torch.testing.assert_close(found.warped, warp(moving, found.flow))
    assert float(found.flow.abs().max()) > 0.1


def test_negative_integration_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="integration_steps") as error:
        Registration(integration_steps=-1)
    assert str(error.value) == (
        "integration_steps=-1 must be at least 0: 0 for a displacement, 7 for a velocity integrated as in HyperMorph."
    )


# --- loss


def test_mse_is_one_where_the_images_differ_by_the_noise() -> None:
    fixed = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(mse(fixed + 0.05, fixed), torch.ones(3, dtype=torch.float64))


def test_ncc_is_the_squared_correlation_in_each_window() -> None:
    x, y = torch.rand(2, 1, 1, 12, 11, dtype=torch.float64)
    padded = [np.pad(image[0, 0].numpy(), 4) for image in (x, y)]
    squares = []
    for row in range(12):
        for column in range(11):
            one, other = (image[row : row + 9, column : column + 9].ravel() for image in padded)
            squares.append(np.corrcoef(one, other)[0, 1] ** 2)
    torch.testing.assert_close(ncc(x, y)[0], -torch.tensor(np.mean(squares)), rtol=1e-4, atol=0)


def test_ncc_is_finite_where_an_image_is_constant() -> None:
    x = torch.zeros(1, 1, 10, 10, requires_grad=True)
    ncc(x, torch.rand(1, 1, 10, 10)).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_smoothness_is_the_mean_over_axes_of_mean_squared_differences() -> None:
    # Along x the differences of the two components are 2 and 0, along y 0 and 3.
    torch.testing.assert_close(smoothness(linear([[2, 0], [0, 3]])), torch.tensor([(4 / 2 + 9 / 2) / 2]).double())


@pytest.mark.parametrize("measure", [mse, ncc])
def test_each_pair_has_its_own_value(measure: Callable[..., torch.Tensor]) -> None:
    one, other = torch.rand(2, 3, 1, 10, 10, dtype=torch.float64)
    alone = torch.cat([measure(one[k : k + 1], other[k : k + 1]) for k in range(3)])
    torch.testing.assert_close(measure(one, other), alone)


@pytest.mark.parametrize("distance", DISTANCES)
def test_lam_goes_from_distance_alone_to_smoothness_alone(distance: str) -> None:
    net = network()
    torch.nn.init.normal_(net.flow.weight)
    pair = Pair(*torch.rand(2, 2, 1, 12, 12), *torch.zeros(2, 2, 12, 12))
    found = net(pair.moving, pair.fixed)
    apart, rough = DISTANCES[distance](found.warped, pair.fixed), smoothness(found.velocity)
    torch.testing.assert_close(loss_of(found, pair, 0.0, distance), apart.mean())
    torch.testing.assert_close(loss_of(found, pair, 1.0, distance), rough.mean())
    each = loss_of(found, pair, torch.tensor([0.25, 0.75]), distance)
    torch.testing.assert_close(each, (0.75 * apart[0] + 0.25 * rough[0] + 0.25 * apart[1] + 0.75 * rough[1]) / 2)


# --- measures


@given(st.lists(st.floats(-2, 2), min_size=4, max_size=4))
def test_a_linear_map_folds_everywhere_or_nowhere(entries: list[float]) -> None:
    matrix = np.array(entries).reshape(2, 2)
    determinant = np.linalg.det(np.eye(2) + matrix)
    if abs(determinant) > 1e-6:
        assert folded(linear(matrix)).tolist() == [float(determinant < 0)]


def test_folds_are_counted_as_a_share_of_the_pixels() -> None:
    flow = torch.zeros(1, 2, 11, 11)
    flow[:, 0, :, 5] = -2  # this column is sampled left of its left neighbour
    torch.testing.assert_close(folded(flow), torch.tensor([10 / 100]))


def test_overlap_is_that_of_the_structures_that_both_subjects_have() -> None:
    moving = torch.tensor([[[1, 1, 4], [0, 2, 4]], [[3, 3, 3], [3, 3, 3]]])
    fixed = torch.tensor([[[1, 0, 5], [0, 2, 0]], [[3, 3, 3], [0, 0, 0]]])
    still = torch.zeros(2, 2, 2, 3)
    torch.testing.assert_close(overlap(moving, fixed, still, 6), torch.tensor([(2 / 3 + 1) / 2, 2 / 3]))


def test_a_structure_that_the_flow_removes_counts_as_missed() -> None:
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    labels[0, :, 0], labels[0, 1, 3] = 1, 2
    left = torch.zeros(1, 2, 4, 4)
    left[:, 0, :, 3] = -1
    torch.testing.assert_close(overlap(labels, labels, left, 3), torch.tensor([(1 + 0) / 2]))


# --- the task


def test_all_but_the_last_convolution_is_generated() -> None:
    model = HyperMorph(network(), {"lam": mip.Uniform(0, 1)})
    unet = {name for name, _ in model.primary.named_parameters() if name.startswith("unet.")}
    assert set(model.hypernet.shapes) == unet
    assert unet
    assert {name for name, _ in model.primary.named_parameters()} - unet == {"flow.weight", "flow.bias"}


@pytest.mark.parametrize("options", [{}, {"draws_per_batch": 2}, {"per_sample": True}])
@pytest.mark.parametrize("distance", DISTANCES)
def test_every_way_of_drawing_lam_trains(
    tmp_path: Path, trainer: Callable[..., L.Trainer], options: dict[str, Any], distance: str
) -> None:
    net = Registration((4, 4), integration_steps=2)
    before = [p.detach().clone() for p in net.parameters()]
    model = HyperMorph(net, {"lam": mip.Uniform(0, 1, endpoints=0.2)}, distance=distance, eval_grid=2, **options)
    trainer(max_epochs=1).fit(model, discs(tmp_path, batch_size=2, steps_per_epoch=2))
    assert all(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_validation_logs_quality_at_each_lam(tmp_path: Path, trainer: Callable[..., L.Trainer]) -> None:
    data = discs(tmp_path)
    model = HyperMorph(network(), {"lam": mip.Uniform(0, 1)}, eval_grid=[{"lam": 0.0}, {"lam": 0.5}])
    (logged,) = trainer().validate(model, data, verbose=False)
    val = data.parts["val"].all()
    start = run.before(val).mean()
    for lam in ("lam=0", "lam=0.5"):
        assert {f"val_{name}/{lam}" for name in ("loss", "dice", "folded", "smoothness")} <= logged.keys()
        assert logged[f"val_dice/{lam}"] == pytest.approx(float(start), abs=0.02)  # nothing is moved yet
    expected = mse(val.moving, val.fixed).mean()
    assert logged["val_loss/lam=0.5"] == pytest.approx(float(expected) / 2, rel=0.01)


def test_pictures_are_of_the_first_validation_pair_at_each_lam(
    tmp_path: Path, trainer: Callable[..., L.Trainer]
) -> None:
    data = discs(tmp_path)
    model = HyperMorph(network(), {"lam": mip.Uniform(0, 1)}, eval_grid=2)
    torch.nn.init.normal_(model.primary.flow.weight)
    trainer().validate(model, data, verbose=False)
    first = data.parts["val"].all()
    with torch.no_grad(), model.at(lam=0.7):
        found = model(first.moving[:1], first.fixed[:1])
        shown = model.visualize({"lam": torch.tensor(0.7)})
    assert list(shown) == ["moving", "warped", "fixed"]
    assert torch.equal(shown["warped"], found.warped)
    assert torch.equal(shown["fixed"], first.fixed[:1])


def test_left_and_right_are_one_structure() -> None:
    names = ["background", "Left-Lateral-Ventricle", "Brain-Stem", "Right-Lateral-Ventricle"]
    assert merged(names) == {"Lateral Ventricle": [1, 3], "Brain Stem": [2]}


def test_masks_hold_one_structure_and_the_pairs_that_have_it(tmp_path: Path) -> None:
    data = discs(tmp_path)
    pairs = data.parts["test"]
    found = masks(pairs, data.names)
    assert [batch.structure[0] for batch in found] == ["Disc", "Ring"]
    everything = pairs.all()
    disc = found[0]
    assert len(disc.structure) == len(disc.moving) == len(pairs)
    assert torch.equal(disc.fixed_mask.bool(), (everything.fixed_labels == 1) | (everything.fixed_labels == 2))


def test_the_best_lam_is_chosen_for_each_structure(tmp_path: Path) -> None:
    data = discs(tmp_path)
    model = HyperMorph(network(), {"lam": mip.Uniform(0, 1)})
    choices = choose_by_structure(model, data.parts["test"], data.names)
    assert list(choices) == ["Disc", "Ring"]
    assert choices["Ring"].count == len(data.parts["test"])
    ring = masks(data.parts["test"], data.names)[1]
    with torch.no_grad(), model.at(choices["Ring"].h):
        assert choices["Ring"].value == pytest.approx(float(dice(model(ring.moving, ring.fixed), ring).mean()))


@pytest.mark.slow
def test_training_brings_structures_together_and_lam_is_a_dial(
    tmp_path: Path, trainer: Callable[..., L.Trainer]
) -> None:
    L.seed_everything(0, verbose=False)
    data = discs(tmp_path, batch_size=8, steps_per_epoch=300)
    space = {"lam": mip.Uniform(0, 1, endpoints=0.2)}
    model = HyperMorph(Registration((8, 8, 8)), space, draws_per_batch=4)
    model.optimizer = lambda parameters: torch.optim.Adam(parameters, 3e-3, fused=True)
    model.lr_scheduler = lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2)
    trainer(max_epochs=2, limit_val_batches=0).fit(model, data)
    table = mip.sweep(model, data, {"lam": [0.0, 0.5, 1.0]}, stage="test")
    test = data.parts["test"].all()
    start = float(run.before(test).mean())
    assert float(table["test_dice"].max()) > start + 0.1
    free, _, stiff = table["test_smoothness"].tolist()
    assert stiff < free / 10


# --- configs and the command


def test_the_specialist_has_the_same_data_and_budget() -> None:
    hyper, plain = (yaml.safe_load((HERE / name).read_text()) for name in ("hypermorph.yaml", "specialist.yaml"))
    assert hyper["data"] == plain["data"]
    assert hyper["seed_everything"] == plain["seed_everything"]
    for config in (hyper, plain):
        del config["trainer"]["logger"]
    assert hyper["trainer"] == plain["trainer"]
    for name in ("primary", "distance", "optimizer", "lr_scheduler"):
        assert hyper["model"]["init_args"][name] == plain["model"]["init_args"][name]


@pytest.mark.parametrize("config", ["hypermorph.yaml", "full.yaml"])
def test_schedules_end_with_the_run(config: str) -> None:
    found = yaml.safe_load((HERE / config).read_text())
    assert found["model"]["init_args"]["lr_scheduler"]["init_args"]["T_max"] == found["trainer"]["max_epochs"]


def test_the_prior_draws_end_points_as_hypermorph_does() -> None:
    config = yaml.safe_load((HERE / "hypermorph.yaml").read_text())
    assert config["model"]["init_args"]["h"]["lam"]["init_args"] == {"low": 0, "high": 1, "endpoints": 0.2}


def test_the_configs_run_and_a_checkpoint_registers_the_same(tmp_path: Path) -> None:
    write_discs(tmp_path)
    save = ["--trainer.logger.init_args.save_dir", str(tmp_path), "--data.root", str(tmp_path)]
    cli = main(["fit", "--config", str(HERE / "hypermorph.yaml"), *save, *SMALL, *VALIDATED])
    loaded = HyperMorph.load_from_checkpoint(cli.trainer.checkpoint_callback.best_model_path, weights_only=True)
    pair = cli.datamodule.parts["test"].all()
    flows = []
    for model in (cli.model.cpu(), loaded):
        with torch.no_grad(), model.at(lam=0.3):
            flows.append(model(pair.moving, pair.fixed).flow)
    assert torch.equal(*flows)
    plain = mip.materialize(loaded, lam=0.3)
    torch.testing.assert_close(plain(pair.moving, pair.fixed).flow, flows[0])


@pytest.mark.parametrize("wide", [[], ["--full"]])
def test_the_command_prints_tables_and_writes_the_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, wide: list[str]
) -> None:
    write_discs(tmp_path)
    monkeypatch.setattr(run, "SPECIALISTS", (0.0, 0.5))
    out = tmp_path / "new" / "figure.png"
    arguments = ["--out", str(out), "--runs", str(tmp_path / "runs"), "--specialists", *wide]
    outcome = run.main([*arguments, "--data.root", str(tmp_path), *SMALL])
    assert out.read_bytes().startswith(b"\x89PNG")
    assert out.stat().st_size < 300_000
    assert set(outcome.plain) == {0.0, 0.5}
    printed = capsys.readouterr().out
    for word in ("Dice", "folded", "smoothness", "specialist", "before registration", "Ring", str(out)):
        assert word in printed
    assert f"{outcome.start:.3f}" in printed
    assert f"{outcome.plain[0.5]['test_dice']:.3f}" in printed
    assert f"{float(outcome.choice.h['lam']):.3f} *" in printed
    assert math.isfinite(outcome.chosen["test_dice"])
