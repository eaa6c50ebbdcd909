"""The page of a sweep, as a browser shows it."""

from __future__ import annotations

import base64
import importlib.util
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import lightning_mip as mip
from lightning_mip.page import write_page
from lightning_mip.pictures import pictures, png
from tests.browser import browser, is_there
from tests.module_kinds import exactly
from tests.tasks import Evaluated, make

EVIL = "<img src=x onerror='document.title=1'></script><b>&"


def table(priors: dict[str, mip.Prior], n: Any, *names: str) -> mip.Sweep:
    """A sweep whose k-th metric at the i-th point is 100 k + i."""
    space = mip.HSpace(priors)
    points = space.grid(n)
    count = torch.arange(len(points), dtype=torch.float32)
    return mip.Sweep(space, points, {name: 100 * k + count for k, name in enumerate(names)})


ONE = table({"lam": mip.LogUniform(0.01, 1)}, 5, "val_loss", "val_acc")
TWO = table({"lam": mip.Uniform(0, 1), "phi": mip.LogUniform(0.01, 1)}, {"lam": 3, "phi": 5}, "val_loss")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if not is_there():
        pytest.skip("Debian's packages chromium and chromium-driver are not installed; .ci/run installs them")
    with browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


class Page:
    """A page in the browser."""

    def __init__(self, driver: Any, path: Path) -> None:
        self.driver = driver
        driver.get(path.as_uri())

    def slide(self, dial: int, steps: int) -> None:
        from selenium.webdriver.common.keys import Keys

        slider = self.driver.find_element("id", f"dial{dial}")
        slider.send_keys((Keys.ARROW_RIGHT if steps > 0 else Keys.ARROW_LEFT) * abs(steps))

    def texts(self, selector: str) -> list[str]:
        return [found.text for found in self.driver.find_elements("css selector", selector)]

    def run(self, script: str) -> Any:
        return self.driver.execute_script(f"return {script}")

    def cursor(self, panel: int = 0) -> tuple[float, float]:
        trace = f"plot.data[data.cursors[{panel}].trace]"
        return self.run(f"{trace}.x[0]"), self.run(f"{trace}.y[0]")

    def check_silent(self) -> None:
        assert self.driver.get_log("browser") == []
        assert self.run("performance.getEntriesByType('resource').length") == 0


@pytest.mark.slow
def test_the_slider_moves_cursor_line_values_and_picture(chromium: Any, tmp_path: Path) -> None:
    shown = [{"seen": png(torch.full((4, 6), k / 4))} for k in range(len(ONE))]
    write_page(ONE, tmp_path / "sweep.html", title="Task over lam", pictures=shown)
    page = Page(chromium, tmp_path / "sweep.html")
    assert page.texts("h1") == ["Task over lam"]
    assert page.texts(".dial label") == ["lam"]
    for steps, point in ((0, 2), (1, 3), (1, 4), (1, 4), (-3, 1)):
        page.slide(0, steps)
        lam = float(ONE.h[point]["lam"])
        assert float(page.texts(".dial output")[0]) == pytest.approx(lam, rel=1e-5)
        assert page.texts("td") == ["val_loss", f"{point}", "val_acc", f"{100 + point}"]
        for panel, metric in enumerate(("val_loss", "val_acc")):
            assert page.cursor(panel) == pytest.approx((lam, float(ONE[metric][point])), rel=1e-5)
            assert page.run(f"plot.layout.shapes[{panel}].x0") == pytest.approx(lam, rel=1e-5)
        source = page.run("document.querySelector('img').src")
        assert base64.b64decode(source.removeprefix("data:image/png;base64,")) == shown[point]["seen"]
        assert page.run("document.querySelector('img').naturalWidth") == 6
    assert page.texts("figcaption") == ["seen"]
    page.check_silent()


@pytest.mark.slow
def test_two_components_have_a_slider_each(chromium: Any, tmp_path: Path) -> None:
    write_page(TWO, tmp_path / "sweep.html")
    page = Page(chromium, tmp_path / "sweep.html")
    page.slide(0, -1)
    page.slide(1, 2)
    assert page.texts(".dial output") == ["0", "1"]
    assert page.texts("td") == ["val_loss", "4"]
    assert page.cursor() == pytest.approx((0, 1))
    page.check_silent()


def scattered() -> mip.Sweep:
    space = mip.HSpace({"lam": mip.Uniform(0, 1), "phi": mip.Uniform(0, 1)})
    points = [space.tensors({"lam": k / 4, "phi": k * k / 16}) for k in range(4)]
    return mip.Sweep(space, points, {"val_loss": torch.arange(4.0)})


KINDS = {
    "classes": (table({"kind": mip.Categorical([1, 5, 7])}, 3, "m"), [1, 1]),
    "front": (table({"w": mip.Simplex(2)}, 5, "a", "b", "c"), [2, 102]),
    "one metric over two weights": (table({"w": mip.Simplex(2)}, 5, "a"), [0.5, 2]),
    "triangle": (table({"w": mip.Simplex(3)}, 2, "a"), [1, 0]),
    "points that are no grid": (scattered(), [0.5, 0.25]),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_sweep_is_drawn(chromium: Any, tmp_path: Path, kind: str) -> None:
    sweep, cursor = KINDS[kind]
    write_page(sweep, tmp_path / "sweep.html")
    page = Page(chromium, tmp_path / "sweep.html")
    assert page.cursor() == pytest.approx(cursor)
    page.check_silent()


@pytest.mark.slow
def test_what_no_figure_shows_has_sliders_and_values(chromium: Any, tmp_path: Path) -> None:
    names = ("a", "b", "c")
    write_page(table({name: mip.Uniform(0, 1) for name in names}, 3, "val_loss"), tmp_path / "sweep.html")
    page = Page(chromium, tmp_path / "sweep.html")
    assert page.texts(".dial label") == [*names]
    page.slide(2, 1)
    assert page.texts("td") == ["val_loss", "14"]
    page.check_silent()


@pytest.mark.slow
def test_names_are_shown_as_text_never_as_html(chromium: Any, tmp_path: Path) -> None:
    name = EVIL.replace("/", "").replace("=", "")  # neither may be in a component's name
    for priors in (
        {name: mip.Uniform(0, 1)},
        {name: mip.Uniform(0, 1), "phi": mip.Uniform(0, 1)},
        {name: mip.Simplex(3)},
    ):
        sweep = table(priors, 3, EVIL, "__DATA__")
        shown = [{EVIL: png(torch.zeros(2, 2))} for _ in sweep.h]
        write_page(sweep, tmp_path / "sweep.html", title=EVIL, pictures=shown)
        page = Page(chromium, tmp_path / "sweep.html")
        assert page.texts("h1, .dial label, td:first-child, figcaption")[:2] == [EVIL, name]
        assert page.texts("td:first-child") == [EVIL, "__DATA__"]
        assert page.texts("figcaption") == [EVIL]
        assert page.run("document.title") == EVIL
        assert page.run("[...document.images].every(image => image.src.startsWith('data:image/png'))")
        assert page.run("document.querySelectorAll('b').length") == 0
        page.check_silent()


def test_the_file_is_complete_in_itself(tmp_path: Path) -> None:
    write_page(ONE, tmp_path / "sweep.html", title="</title><b>")
    text = (tmp_path / "sweep.html").read_text(encoding="utf-8")
    outside = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"(src|href)\s*=|https?://|@import", outside)
    assert "default-src 'none'" in outside
    assert "<title>&lt;/title&gt;&lt;b&gt;</title>" in text


def test_without_plotly_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = "write_page needs plotly; pip install 'lightning-mip[page]', or use table.plot()."
    with pytest.raises(ImportError, match=exactly(message)):
        write_page(ONE, tmp_path / "sweep.html")


def test_nan_is_shown_and_not_drawn(tmp_path: Path) -> None:
    sweep = mip.Sweep(ONE.space, ONE.h, {"m": torch.tensor([1, math.nan, 2, math.inf, 0])})
    write_page(sweep, tmp_path / "sweep.html")
    assert '["1", "nan", "2", "inf", "0"]' in (tmp_path / "sweep.html").read_text(encoding="utf-8")


class Visible(Evaluated):
    """Shows its prediction at the current h."""

    def visualize(self, h: Any) -> Any:
        x = torch.linspace(-1, 1, 6).reshape(2, 3)
        return {"prediction": self(x).sigmoid(), "h": torch.full((1, 1), float(self.h["lam"]) * float(h["lam"]))}


def pixels(file: bytes) -> torch.Tensor:
    """The numbers of a grey PNG file."""
    from io import BytesIO

    from matplotlib.image import imread

    return torch.as_tensor(imread(BytesIO(file)))


def test_pictures_are_made_with_the_weights_of_their_h() -> None:
    model = make(Visible)
    grid = model.space.grid(3)
    found = pictures(model, grid)
    assert found is not None
    x = torch.linspace(-1, 1, 6).reshape(2, 3)
    for h, shown in zip(grid, found, strict=True):
        with torch.no_grad():
            expected = mip.materialize(model, h)(x).sigmoid()
        torch.testing.assert_close(pixels(shown["prediction"]), expected, atol=0.5 / 255 + 1e-6, rtol=0)
        assert float(pixels(shown["h"])) == pytest.approx(float(h["lam"]) ** 2, abs=0.5 / 255)
    assert pictures(make(Evaluated), grid) is None


def test_an_image_may_be_grey_coloured_or_several_numbers_or_bytes() -> None:
    grey = torch.tensor([[0, 0.5], [1, 2]])
    torch.testing.assert_close(pixels(png(grey)), torch.tensor([[0, 128 / 255], [1, 1]]))
    torch.testing.assert_close(pixels(png(grey[None])), pixels(png(grey)))
    colours = torch.rand(3, 2, 4)
    torch.testing.assert_close(pixels(png(colours)), colours.permute(1, 2, 0), atol=0.5 / 255 + 1e-6, rtol=0)
    assert pixels(png(torch.rand(5, 1, 2, 4))).shape == (2, 20)
    assert pixels(png((colours * 255).byte().numpy())).shape == (2, 4, 3)


def test_an_image_of_another_shape_is_refused() -> None:
    message = "visualize gave an image of shape (2, 4, 4), expected (H, W), (1 or 3, H, W) or (N, 1 or 3, H, W)."
    with pytest.raises(ValueError, match=exactly(message)):
        png(torch.zeros(2, 4, 4))
