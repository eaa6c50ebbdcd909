"""The reproduction: what is run when, what a file of results keeps, what the tables say."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import ablations, convergence, pages, reproduce, results
from benchmarks.parametrizations import ACTIVATIONS, WAYS, Unit, build
from benchmarks.results import Results, Study, complete, key, read
from benchmarks.runs import STEPS, Cell, Point, Result, Run, train
from benchmarks.tasks import shifted
from lightning_mip import HSpace, Uniform

SPACE = HSpace({"h0": Uniform(0, 1), "h1": Uniform(0, 1)})
CELL = Cell("shifted", "adam", "MIP", rates=(1e-3, 3e-3, 1e-2))


def result(*finals: float, diverged: bool = False) -> Result:
    """A run whose metric was that."""
    points = [Point(10 * k, 2.0 * k, (value, value), (1.0, 0.5)) for k, value in enumerate(finals)]
    return Result(tuple(points), diverged, 3.0)


def study_of(finals: dict[float, float], **arguments: object) -> Study:
    """One cell, searched at these learning rates."""
    study = Study([CELL], {}, **arguments)
    for lr, final in finals.items():
        study.results[key(study.run(CELL, lr, results.SEARCH_SEED))] = result(final, final, final)
    return study


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty random digits."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("data")
    arrays = {"x_train": rng.integers(0, 256, (20, 28, 28), dtype=np.uint8), "y_train": rng.integers(0, 10, 20)}
    np.savez(folder / "mnist.npz", **arrays, train_idx=np.arange(12), val_idx=np.arange(12, 20))
    return folder


class TestWhatIsDue:
    def test_first_the_learning_rates_with_the_seed_of_the_search(self) -> None:
        runs, later = study_of({}).due()
        assert [(run.lr, run.seed) for run in runs] == [(1e-3, 0), (3e-3, 0), (1e-2, 0)]
        assert later == 3

    def test_then_the_best_of_them_with_other_seeds_alone(self) -> None:
        study = study_of({1e-3: 0.5, 3e-3: 0.9, 1e-2: 0.7})
        runs, later = study.due()
        assert [(run.lr, run.seed) for run in runs] == [(3e-3, 1), (3e-3, 2), (3e-3, 3)]
        assert later == 0
        assert study.found(CELL) == []  # the lucky seed of the search is no result

    @pytest.mark.parametrize(
        ("finals", "beyond"),
        [({1e-3: 0.9, 3e-3: 0.5, 1e-2: 0.1}, 3.3e-4), ({1e-3: 0.1, 3e-3: 0.5, 1e-2: 0.9}, 3e-2)],
        ids=["low", "high"],
    )
    def test_the_search_goes_on_beyond_the_end_where_the_best_is(
        self, finals: dict[float, float], beyond: float
    ) -> None:
        study = study_of(finals)
        assert [(run.lr, run.seed) for run in study.due()[0]] == [(beyond, 0)]
        assert study.rate(CELL) is None

    def test_but_not_for_ever_and_then_it_is_marked(self) -> None:
        study = study_of({1e-3: 0.1, 3e-3: 0.5, 1e-2: 0.9, 3e-2: 0.95}, extensions=1)
        assert [(run.lr, run.seed) for run in study.due()[0]] == [(3e-2, 1), (3e-2, 2), (3e-2, 3)]
        assert study.at_edge(CELL)
        assert not study_of({1e-3: 0.5, 3e-3: 0.9, 1e-2: 0.7}).at_edge(CELL)

    def test_a_changed_cell_waits_for_the_learning_rate_of_the_one_it_is_like(self) -> None:
        changed = Cell("shifted", "adam", "MIP", {"activation": "Tanh"}, like=CELL)
        study = Study([changed], {})
        assert {run.cell for run in study.due()[0]} == {CELL}
        study.results.update(study_of({1e-3: 0.5, 3e-3: 0.9, 1e-2: 0.7}).results)
        assert [(run.cell, run.lr) for run in study.due()[0]] == [(changed, 3e-3)] * 3

    def test_runs_of_another_budget_do_not_count(self) -> None:
        study = study_of({1e-3: 0.5, 3e-3: 0.9, 1e-2: 0.7})
        other = Study([CELL], study.results, budget=0.5)
        assert [run.steps for run in other.due()[0]] == [STEPS["shifted"] // 2] * 3
        assert other.done() == {}

    def test_nor_do_runs_at_rates_that_are_no_longer_tried(self) -> None:
        study = study_of({1e-3: 0.5, 3e-3: 0.9, 1e-2: 0.7})
        known = set(study.done())
        study.results[key(study.run(CELL, 0.5, 1))] = result(0.95, 0.95, 0.95)
        study.results[key(study.run(CELL, 3e-3, 1))] = result(0.8, 0.8, 0.8)
        assert set(study.done()) - known == {key(study.run(CELL, 3e-3, 1))}


class TestInterruption:
    def test_a_program_goes_on_where_it_stopped(self, tmp_path: Path) -> None:
        path, started = tmp_path / "runs" / "some.jsonl", []

        def work(run: Run, data: Path) -> Result:
            if len(started) == 4:
                started.append("stopped")
                raise KeyboardInterrupt
            started.append((run.lr, run.seed))
            return result(0.1, run.lr, run.lr, diverged=run.lr > 5e-3)

        with pytest.raises(KeyboardInterrupt):
            complete(Study([CELL], read(path)), path, tmp_path, work=work)
        assert started == [(1e-3, 0), (3e-3, 0), (1e-2, 0), (3e-3, 1), "stopped"]
        again = Study([CELL], read(path))
        complete(again, path, tmp_path, work=work)
        assert started[5:] == [(3e-3, 2), (3e-3, 3)]
        assert read(path) == again.results
        assert len(again.found(CELL)) == 3

    def test_a_line_that_was_cut_off_is_done_again(self, tmp_path: Path) -> None:
        path = tmp_path / "some.jsonl"
        complete(
            Study([CELL], {}), path, tmp_path, work=lambda run, data: result(run.lr, run.lr, diverged=run.lr > 5e-3)
        )
        whole = path.read_text()
        path.write_text(whole[:-20])
        assert len(read(path)) == 5
        complete(Study([CELL], read(path)), path, tmp_path, work=lambda run, data: result(run.lr, run.lr))
        assert [json.loads(line)["seed"] for line in path.read_text().splitlines()] == [0, 0, 0, 1, 2, 3]

    @pytest.mark.slow
    def test_processes_give_what_this_process_gives(self, data: Path, tmp_path: Path) -> None:
        cell, found = Cell("shifted", "adam", "ours", rates=(1e-3,)), list[Results]()
        for workers in (1, 2):
            study = Study([cell], {}, budget=0.005)
            complete(study, tmp_path / f"{workers}.jsonl", data, workers)
            found.append(study.results)
        assert found[0].keys() == found[1].keys()
        assert [found[0][k].values for k in found[0]] == [found[1][k].values for k in found[0]]


class TestRuns:
    @pytest.mark.parametrize("way", [way for way in WAYS if way != "specialist"])
    @pytest.mark.parametrize("optimizer", ["sgd", "adam"])
    def test_a_curve_holds_the_metric_at_each_h_and_the_gradient(self, way: str, optimizer: str, data: Path) -> None:
        found = train(Run(Cell("shifted", optimizer, way), 1e-3, 1, 4), data)
        assert [point.step for point in found.points] == [0, 1, 2, 3, 4]
        assert {len(point.values) for point in found.points} == {shifted.SHIFTS}
        assert found.gradient[0] > found.gradient[1] > 0
        assert not found.diverged

    def test_one_that_diverges_ends_and_counts_as_nothing(self, data: Path) -> None:
        found = train(Run(Cell("shifted", "sgd", "MIP"), 1e30, 1, 20), data)
        assert found.diverged
        assert found.points[-1].step < 20
        assert found.final == 0

    def test_the_same_seed_is_the_same_run(self, data: Path) -> None:
        first, second = (train(Run(Cell("shifted", "adam", "ours"), 1e-2, seed, 3), data) for seed in (1, 1))
        assert [p.gradient for p in first.points] == [p.gradient for p in second.points]

    def test_a_specialist_sees_one_h(self, data: Path) -> None:
        found = train(Run(Cell("shifted", "adam", "specialist", {"at": 2}), 1e-2, 1, 3), data)
        assert {len(point.values) for point in found.points} == {1}

    @pytest.mark.parametrize("axis", ablations.AXES)
    def test_each_line_of_an_ablation_runs(self, axis: str, data: Path) -> None:
        lines = ablations.AXES[axis][0]()
        for line in lines.values():
            found = train(Run(line[next(iter(line))], 1e-3, 1, 2), data)
            assert [point.step for point in found.points] == [0, 1, 2], line

    def test_the_gradient_is_that_of_the_generated_weights(self) -> None:
        x = torch.randn(5, 3)
        for way in ("default", "residual", "ours"):
            net = torch.nn.Linear(3, 2)
            variant = build(way, net, SPACE)
            with variant.at(variant.draw(0)) as network:
                network(x).sum().backward()
            flat = torch.cat([parameter.grad.flatten() for parameter in variant.added])
            torch.testing.assert_close(flat, torch.cat([x.sum(0).repeat(2), torch.full((2,), 5.0)]))

    def test_in_parts_each_h_has_its_own_network_and_the_same_as_alone(self) -> None:
        net = torch.nn.Linear(3, 2)
        variant = build("MIP", net, SPACE, draws=3)
        h = variant.draw(0)
        with variant.at(h) as networks:
            together = [network(torch.ones(1, 3)) for network in networks]
        for k in range(3):
            with variant.at({name: value[k] for name, value in h.items()}) as network:
                torch.testing.assert_close(network(torch.ones(1, 3)), together[k])

    def test_unit_inputs(self) -> None:
        h = torch.tensor([[3.0, 4.0]])
        torch.testing.assert_close(Unit(append=False)(h), torch.tensor([[0.6, 0.8]]))
        torch.testing.assert_close(Unit(append=True)(h), torch.tensor([[3.0, 4.0, 1.0]]) / 26**0.5)


class TestTables:
    def test_cost_is_of_smoothed_values_and_of_the_seeds_that_get_there(self) -> None:
        lucky, steady = result(0.1, 0.9, 0.1, 0.2), result(0.1, 0.9, 0.9, 0.9)
        assert convergence.cost([steady, steady], 0.8) == ("20", "4.0")
        assert convergence.cost([steady, lucky], 0.8) == ("20 (1 of 2)", "4.0")
        assert convergence.cost([lucky], 0.8) == ("never", "")
        assert convergence.best_of([steady, lucky]) == pytest.approx((0.9 + 0.2) / 2)

    def test_the_final_value_is_a_median_of_three_and_the_gradient_of_all_steps(self) -> None:
        found = result(0.0, 0.7, 0.9, 0.1)
        assert found.final == 0.7
        assert found.gradient == (1.0, 0.5)
        assert result(0.5, 0.9, 0.9, diverged=True).final == 0

    def test_only_the_generated_part_of_a_page_is_replaced(self) -> None:
        page = pages.inserted("# Mine\n\nWhat was found.\n", "convergence", "old")
        page = pages.inserted(page, "ablations", "other") + "\nAnd more.\n"
        page = pages.inserted(page, "convergence", "new")
        assert "old" not in page
        assert page.index("What was found.") < page.index("new") < page.index("other") < page.index("And more.")

    def test_a_study_from_runs_to_readme(self, data: Path, tmp_path: Path) -> None:
        argv = ["--data", str(data), "--runs", str(tmp_path / "runs"), "--budget", "0.003", "--out", str(tmp_path)]
        argv += ["--axes", "theta0", "activation", "--seeds", "1"]
        text = ablations.main(argv)
        assert text in (tmp_path / "README.md").read_text()
        assert str(tmp_path) not in text
        lines = {line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")}
        assert {"random", "pretrained", *ACTIVATIONS} <= lines
        with (tmp_path / "ablations.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert {row["cell"] for row in rows} >= {"shifted, adam, MIP", "shifted, adam, ours, activation ELU"}
        assert len(rows) == len(read(tmp_path / "runs" / "ablations.jsonl"))
        assert ablations.main([*argv, "--tables"]).split("\n\n")[2:] == text.split("\n\n")[2:]


class TestMakingItAgain:
    def test_the_small_one_makes_a_run_of_each_row_again_and_says_how_it_came_out(
        self, data: Path, tmp_path: Path
    ) -> None:
        argv = ["--data", str(data), "--runs", str(tmp_path / "runs")]
        full = ["--axes", "theta0", "--budget", "0.003", "--seeds", "1", "2", "--out", str(tmp_path / "page")]
        ablations.main([*argv, *full])
        (tmp_path / "page" / "convergence.csv").write_text(",".join(pages.COLUMNS) + "\n")
        text = reproduce.main([*argv, "--page", str(tmp_path / "page")])
        rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| shifted")]
        assert len(rows) == 6  # random or pretrained theta0, three ways; of two seeds, one
        assert {row[-1] for row in rows} <= {"+0.0000 |", "-0.0000 |"}
        assert "6 rows made again with seed 1; 6 came out the same to four digits." in text

    def test_a_value_that_is_not_the_committed_one_shows(self, data: Path, tmp_path: Path) -> None:
        header, row = ",".join(pages.COLUMNS), '"shifted, adam, MIP",0.001,1,2,0.9999,0,0.9 0.9,1,1,1'
        (tmp_path / "ablations.csv").write_text(f"{header}\n{row}\n")
        (tmp_path / "convergence.csv").write_text(f"{header}\n")
        text = reproduce.small(tmp_path, tmp_path / "runs", data, 1, 1)
        assert "1 rows made again with seed 1; 0 came out the same" in text

    def test_without_rows_it_says_how_to_make_them(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"convergence.csv does not exist, .*; use --full to make them."):
            reproduce.main(["--data", str(tmp_path), "--page", str(tmp_path)])
