"""The documentation names what there is, and says what was measured."""

import ast
import importlib
import inspect
import pkgutil
import re
import runpy
import shutil
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest

import sklearn_g2d
from benchmarks import comparison
from benchmarks.report import summarize
from sklearn_g2d import AVIDDetector, G2DOutlierDetector

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *RESULTS.glob("*.md")]
MODULES = [
    sklearn_g2d.__name__,
    *(
        module.name
        for module in pkgutil.walk_packages(sklearn_g2d.__path__, "sklearn_g2d.")
        if not re.search(r"\._|\.utils", module.name)
    ),
]
INTERNAL = "sklearn_g2d.training"


def public_objects():
    for name in MODULES:
        if not name.startswith(INTERNAL):
            module = importlib.import_module(name)
            for exported in module.__all__:
                yield f"{name}.{exported}", getattr(module, exported)


@pytest.mark.parametrize("module", [m for m in MODULES if m != INTERNAL])
def test_reference_has_every_module(module):
    page = "internals.md" if module.startswith(INTERNAL) else "modules.md"
    assert module in (ROOT / "docs" / page).read_text().split()


def test_reference_has_every_name():
    """Detectors are public twice, and listed where users import them from."""
    listed = (ROOT / "docs" / "api.md").read_text().split()
    own = {
        thing: name for name, thing in public_objects() if name.count(".") == 1 and callable(thing)
    }
    for name, thing in public_objects():
        if callable(thing) or isinstance(thing, dict):
            name = own[thing] if callable(thing) and thing in own else name
            assert listed.count(name.removeprefix("sklearn_g2d.")) == 1, name


def test_every_page_is_in_the_contents():
    pages = {path.stem: path.read_text() for path in ROOT.glob("docs/*.md")}
    blocks = re.findall(r"```\{toctree\}.*?```", "".join(pages.values()), flags=re.DOTALL)
    listed = {line for block in blocks for line in block.splitlines()}
    assert pages.keys() - {"index"} <= listed


def test_everything_public_has_an_example():
    lacking = [
        name
        for name, thing in public_objects()
        if (inspect.isclass(thing) or inspect.isfunction(thing))
        and not (inspect.isclass(thing) and issubclass(thing, Exception))
        and "\nExamples\n---" not in inspect.getdoc(thing)
    ]
    assert not lacking


def test_every_parameter_is_documented():
    """Also of dataclasses, whose signature linters do not see."""
    wrong = []
    for name, thing in public_objects():
        if inspect.isclass(thing) and not issubclass(thing, Exception):
            text = inspect.getdoc(thing)
            heading = "Parameters" if "\nParameters\n---" in text else "Attributes"
            section = text.partition(f"\n{heading}\n---")[2].partition("\n\n")[0]
            documented = ", ".join(re.findall(r"^(\w[\w, ]*) :", section, flags=re.MULTILINE))
            parameters = list(inspect.signature(thing).parameters)
            if parameters and sorted(documented.split(", ")) != sorted(parameters):
                wrong.append(f"{name}: {documented}")
    assert not wrong


def written_parameters(call):
    """Parameters by keyword in a call that a page shows."""
    return {
        word.arg: ast.literal_eval(word.value) for word in ast.parse(call).body[0].value.keywords
    }


def test_defaults_on_the_page_of_parts():
    """Its tables are typed; they must be those of signatures and of `from_paper`."""
    text = (ROOT / "docs" / "parts.md").read_text().partition("## Swap")[0]
    modules = (
        importlib.import_module(f"sklearn_g2d.{name}") for name in ("g2d", "avid", "features")
    )
    parts = {name: getattr(module, name) for module in modules for name in module.__all__}
    shown = re.findall(r"`(\w+)\(\)`, which is `([^`]*)`", text)
    assert len(shown) >= 9
    for name, parameters in shown:
        written = written_parameters(f"{name}({parameters})")
        assert written.items() <= parts[name]().get_params().items(), name
    g2d, avid = G2DOutlierDetector.from_paper("tables"), AVIDDetector.from_paper("images")
    for part in (g2d.generator, g2d.classifier, avid.inpainter):
        (call,) = re.findall(rf"`({type(part).__name__}\([^`]*=[^`]*\))`", text)
        written = type(part)(**written_parameters(call)).get_params()
        # Networks stand beside the call, and are compared above.
        networks = {n: v for n, v in part.get_params().items() if n.startswith("generator_network")}
        assert written | networks == part.get_params()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_files(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path = target.partition("#")[0]
        # The gallery is written when the site is built.
        if "://" not in target and path and not path.startswith("auto_examples"):
            assert (page.parent / unquote(path)).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_are_where_pages_say(page):
    """The gallery has a page for each plot_*.py, in the folder of the same name."""
    text = page.read_text()
    scripts = re.findall(r"\bexamples/[\w/]+\.py", text)
    pages = re.findall(r"auto_examples/([\w/]+/plot_\w+)\.rst", text)
    for script in [*scripts, *(f"examples/{name}.py" for name in pages)]:
        assert (ROOT / script).exists(), script
    assert not re.findall(r"auto_examples/plot_\w+", text), "examples are in folders"


def test_comparison_is_that_of_the_files():
    """`python -m benchmarks.comparison` writes it."""
    assert (RESULTS / "comparison.md").read_text() == comparison.page(RESULTS)


def test_comparison_row(tmp_path):
    pd.DataFrame(
        {
            "table": ["a", "a", "a", "a"],
            "seed": [0, 1, 0, 0],
            "detector": ["G2D", "G2D", "KNN features", "5-NN tiles (grid known)"],
            "auc": [0.9, 0.7, 0.95, 0.99],
        }
    ).to_csv(tmp_path / "made.csv")
    figure = comparison.Figure("what", "AUC", ".5 (Table 1)", "made")
    row = dict(zip(comparison.HEADINGS, comparison.row(figure, tmp_path), strict=True))
    assert row["this package"] == ".800"
    assert row["best of PyOD"] == "**.950** KNN features"
    assert row["best other baseline"] == ""
    assert row["the paper"] == ".5 (Table 1)"


def readme_table(heading):
    """Rows of the README's table below a heading: label, figures (NaN where a cell is empty)."""
    text = (ROOT / "README.md").read_text()
    _, _, *rows = text[text.index(heading) :].partition("\n\n")[0].splitlines()
    for row in rows:
        label, *cells = (cell.strip(" *") for cell in row.strip("|").split("|"))
        label = "G2D as published" if "as published" in label else label.removeprefix("PyOD ")
        yield label, [float(cell or "nan") for cell in cells]


def test_readme_figures_of_tables():
    """They are typed; they must be the CSV file's."""
    columns = {"auc": "AUC", "average_precision": "AP", "eer": "EER"}
    summary = summarize(pd.read_csv(RESULTS / "tabular.csv"), columns)
    rows = list(readme_table("| | AUC | average precision | EER | mean rank"))
    assert len(rows) >= 6
    for label, figures in rows:
        *rates, rank = summary.loc[label.partition(",")[0], ["AUC", "AP", "EER", "rank"]]
        assert figures[:3] == pytest.approx(rates, abs=6e-4)
        assert figures[3] == pytest.approx(rank, abs=0.051)


def test_readme_figures_of_images():
    mnist = summarize(pd.read_csv(RESULTS / "mnist.csv"), {"auc": "AUC"}, "digit")["AUC"]
    caltech = pd.read_csv(RESULTS / "caltech.csv").groupby(["detector", "categories"])["auc"].mean()
    rows = list(readme_table("| | MNIST, one digit normal"))
    assert len(rows) >= 6
    for label, figures in rows:
        detector = label.replace(",", "")
        assert figures[0] == pytest.approx(mnist[detector], abs=6e-4)
        if detector in caltech:
            assert figures[1:] == pytest.approx(caltech[detector].loc[[1, 3, 5]].tolist(), abs=6e-4)


def test_link_check_finds_what_is_broken(tmp_path):
    broken_links = runpy.run_path(str(ROOT / "docs" / "checks" / "links.py"))["broken_links"]
    (tmp_path / "other.html").write_text('<h1 id="here">Other</h1>')
    page = tmp_path / "index.html"
    page.write_text('<a href="other.html#here">1</a> <a href="https://example.org/x">2</a>')
    assert broken_links(tmp_path) == []
    page.write_text(
        '<a href="none.html">1</a> <a href="other.html#gone">2</a> <img src="no.png">'
        '<script src="https://example.org/x.js"></script>'
    )
    assert len(broken_links(tmp_path)) == 4


def test_browser_check_finds_what_is_wrong(tmp_path):
    """Of each kind one fault, and things that look like faults but are none."""
    playwright = pytest.importorskip("playwright.sync_api")
    checks = runpy.run_path(str(ROOT / "docs" / "checks" / "browser.py"))
    executable = next(filter(None, map(shutil.which, checks["BROWSERS"])), None)
    if executable is None:
        pytest.skip("no browser is installed")
    long = "a_name_of_code_that_is_far_too_long_for_the_screen_of_a_phone"
    page = """<!doctype html><article style="overflow-x: auto">
    <h1>{h1}</h1>
    <div style="overflow: {frame}">
    <table><thead style="{head}"><tr><th>{wide}</th></tr></thead></table>
    </div>
    <img {alt} src="data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA=">
    </article>"""
    good = {"h1": "Short", "head": "", "frame": "auto", "wide": long + long, "alt": 'alt="A dot"'}
    wrong = {
        "cut heading": {"h1": long},
        "cut head of a table": {"frame": "visible"},
        "hidden head of a table": {"head": "display: none"},
        "no alternative text": {"alt": 'alt="plot first detector"'},
        "pixels wider": {"h1": f"Short <p style='position: absolute; width: 500px'>{long}</p>"},
    }
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        tab = browser.new_page(viewport=checks["SCREENS"]["phone"])
        tab.set_content(page.format(**good))
        assert tab.evaluate(checks["FAULTS"]) == []
        for fault, change in wrong.items():
            tab.set_content(page.format(**good | change))
            assert any(fault in found for found in tab.evaluate(checks["FAULTS"])), fault
        browser.close()
