"""Every text that the package raises, warns with or ends a command with is tested as a whole, and fits on a screen."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.messages.mistakes import MISTAKES
from tests.messages.sites import HOLE, Site, by_site, sites_of, texts_of
from tests.module_kinds import exactly

ROOT = Path(__file__).parents[2]
MOST = 3 * 120  # three lines


@pytest.fixture(scope="module")
def texts() -> dict[Site, list[str]]:
    """The texts in the tests, by the site of the package that they are of."""
    found = by_site(sites_of(ROOT / "lightning_mip"), texts_of(ROOT / "tests"))
    assert found
    return found


# pytest.warns records what Lightning uses of torch's deprecated names, and raises it again.
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec")
@pytest.mark.parametrize("name", MISTAKES)
def test_the_mistake_is_told_in_these_words(name: str) -> None:
    mistake, kind, text = MISTAKES[name]
    if issubclass(kind, Warning):
        with pytest.warns(kind, match=exactly(text)):
            mistake()
        return
    with pytest.raises(kind) as error:
        mistake()
    assert error.value.args == (text,)
    own = [entry for entry in error.traceback if Path(entry.path).is_relative_to(ROOT / "lightning_mip")]
    assert name.startswith(f"{Path(own[-1].path).stem}.{own[-1].name}: ")


def test_every_text_of_the_package_is_tested_as_a_whole(texts: dict[Site, list[str]]) -> None:
    """A new text needs a test that holds it as one string, or a row in `tests.messages.mistakes`."""
    untested = [site for site, found in texts.items() if not found and not site.is_vague]
    # Of a vague one a string in the tests says nothing: its row does, which names its function.
    rows = {name: mistake[2] for name, mistake in MISTAKES.items()}
    for site in (site for site in texts if site.is_vague):
        number = sum(name.startswith(f"{site.function}: ") and site.is_of(text) for name, text in rows.items())
        alike = [other for other in texts if (other.function, other.form) == (site.function, site.form)]
        untested += [site] if number < len(alike) else []
    assert not untested, "\n".join(f"{site.where}: {site.form.replace(HOLE, '{}')}" for site in untested)


def test_no_text_is_longer_than_three_lines(texts: dict[Site, list[str]]) -> None:
    # The report of a hypernetwork that does not fit stands above its text.
    found = {text.rpartition("\n")[2] for site, tests in texts.items() if not site.is_vague for text in tests}
    assert [text for text in found | {text for _, _, text in MISTAKES.values()} if len(text) > MOST] == []


@pytest.mark.parametrize(
    ("source", "text", "is_tested"),
    [
        ('raise ValueError("no such file")', "no such file", True),
        ('raise ValueError("no such file")', "no such file.", False),
        ('raise ValueError(f"there is no {name}, sorry")', "there is no lam, sorry", True),
        ('raise ValueError(f"there is no {name}, sorry")', "there is no lam", False),
        ('text = f"there is no {name}, sorry"\nraise KeyError(text)', "there is no lam, sorry", True),
        ('text = f"there is no {name}, sorry"\nraise KeyError(text)', "no lam, sorry", False),
        ('raise KeyError("there is no such thing" + (", sorry" if polite else ""))', "there is no such thing", False),
        ("raise RuntimeError(AGAIN)", "run the network again", True),
        ("raise RuntimeError(AGAIN)", "run the network", False),
        ("raise RuntimeError(worded(name))", "the thing called lam is missing", True),
        ("raise RuntimeError(worded(name))", "the thing called lam", False),
        ('warnings.warn(f"there is no {name}, sorry", stacklevel=2)', "there is no lam", False),
        ('rank_zero_warn(f"there is no {name}, sorry")', "there is no lam", False),
        ('fail("fit", f"there is no {name}, sorry")', "there is no lam", False),
        ('fail("fit", f"there is no {name}, sorry")', "lightning-mip fit: error: there is no lam, sorry", True),
    ],
)
def test_a_text_is_tested_by_a_string_that_holds_it_all(
    source: str, text: str, is_tested: bool, tmp_path: Path
) -> None:
    package, tests = tmp_path / "package", tmp_path / "tests"
    package.mkdir()
    tests.mkdir()
    lines = [
        'AGAIN = "run the network again"',
        'def worded(name): return f"the thing called {name} is missing"',
        "def act(name, polite):",
        *(f"    {line}" for line in source.splitlines()),
    ]
    (package / "one.py").write_text("\n".join(lines))
    (tests / "test_one.py").write_text(f'"""{source!r}"""\nTEXT = {text!r}\n')
    found = by_site(sites_of(package), texts_of(tests))
    assert found
    assert all(found.values()) is is_tested


def test_a_text_of_one_site_does_not_test_a_wider_one(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(
        'def act(name, given):\n    raise ValueError(f"{name} is {given}, expected more.")\n'
        'def other(given):\n    raise ValueError(f"size is {given}, expected more.")\n'
    )
    found = by_site(sites_of(tmp_path), ["size is 3, expected more."])
    assert {site.function: len(texts) for site, texts in found.items()} == {"one.act": 0, "one.other": 1}


def test_what_each_caller_gives_a_text_is_a_text_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(
        'def leave(reason):\n    warnings.warn(f"left out: {reason}.")\n'
        'def act():\n    leave("it is no number")\n    leave("it is too long")\n'
    )
    forms = [site.form for site in sites_of(tmp_path)]
    assert forms == ["left out: it is no number.", "left out: it is too long."]
