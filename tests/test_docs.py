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
    """The gallery has a page for each plot_*.py, in the folder of the same name.

    Links to it are dead in a copy of the repository, so that the script must be named, too.
    """
    text = page.read_text()
    scripts = re.findall(r"\bexamples/[\w/]+\.py", text)
    pages = re.findall(r"auto_examples/([\w/]+/plot_\w+)\.rst", text)
    for script in scripts:
        assert (ROOT / script).exists(), script
    assert {f"examples/{name}.py" for name in pages} <= set(scripts)
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
    published = {"table": ["a", "a"], "seed": [0, 1], "detector": "G2D as published"}
    pd.DataFrame(published | {"auc": [0.4, 0.6]}).to_csv(tmp_path / "made_published.csv")
    row = dict(zip(comparison.HEADINGS, comparison.row(figure, tmp_path), strict=True))
    assert row["as published, here"] == ".500"


WITH_FIGURES = pytest.mark.parametrize(
    "page", [ROOT / "README.md", RESULTS / "README.md"], ids=["README", "findings"]
)
IN_FILES = {  # labels of the pages, and the names of detectors in CSV files
    "G2D as published (`from_paper`)": "G2D as published",
    "ALAD, a GAN": "ALAD",
    'G2D, told nothing (`contamination="auto"`)': "G2D auto",
    "G2D, pretrained features": "G2D pretrained",
    "PatchDetector, pooled": "PatchDetector, pooled",
    "coreset of 1 %, as in PatchCore": "PatchDetector, coreset of 1 %",
    "Gaussian per place, as in PaDiM": "Gaussian per place",
    "IsolationForest on patches": "PatchDetector, IsolationForest",
    "G2D on whole images, pretrained": "G2D pretrained",
    "for_fixed_camera": "fixed camera",
    "G2D on patches of motion": "G2D",
    "AVID on patches of motion": "AVID",
    "5-NN on patches of motion": "5-NN speed of the foreground",
    "optical flow, blurred": "flow, blurred",
}
HEADINGS = [
    "| | AUC | average precision | EER | mean rank of 15",
    "| unlabelled | AUC | average precision | EER | mean rank of 14",
    "| | MNIST, one digit normal",
    "| | boards: image AUC",
    "| Ped2 | frame AUC, all clips pooled",
]


def raw_table(page, heading):
    """Rows of a page's table below a heading, each a list of texts."""
    text = page.read_text()
    _, _, *rows = text[text.index(heading) :].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def typed_table(page, heading):
    """Rows of it: detector, figures (NaN where a cell is empty)."""
    for label, *cells in raw_table(page, heading):
        label = label.removeprefix("PyOD ")
        if "its paper" not in label:  # was not measured here
            figures = [float(cell.strip("*") or "nan") for cell in cells]
            yield IN_FILES.get(label, label.replace(",", "")), figures


def rounded(figures):
    return pytest.approx(figures, abs=6e-4, nan_ok=True)


@WITH_FIGURES
@pytest.mark.parametrize("heading", HEADINGS)
def test_best_figure_of_a_column_is_bold(page, heading):
    """Whoever it belongs to; errors and ranks are better when lower."""
    text = page.read_text()
    names = [name.strip() for name in text[text.index(heading) :].split("\n")[0].split("|")[2:-1]]
    columns = list(zip(*(cells[1:] for cells in raw_table(page, heading)), strict=True))
    for name, column in zip(names, columns, strict=True):
        lowest = "EER" in name or "rank" in name
        figures = {cell: float(cell.strip("*")) for cell in column if cell}
        best = (min if lowest else max)(figures.values())
        assert {cell for cell in figures if "*" in cell} == {
            cell for cell, figure in figures.items() if figure == best
        }


@WITH_FIGURES
@pytest.mark.parametrize(
    ("stem", "heading"),
    [("tabular", HEADINGS[0]), ("unlabelled", HEADINGS[1])],
)
def test_figures_of_tables(page, stem, heading):
    """They are typed; they must be the CSV file's."""
    columns = {"auc": "AUC", "average_precision": "AP", "eer": "EER"}
    summary = summarize(pd.read_csv(RESULTS / f"{stem}.csv"), columns)
    rows = list(typed_table(page, heading))
    assert len(rows) >= {"tabular": 6, "unlabelled": 4}[stem]
    for label, figures in rows:
        *rates, rank = summary.loc[label, ["AUC", "AP", "EER", "rank"]]
        assert figures[:3] == rounded(rates)
        assert figures[3] == pytest.approx(rank, abs=0.051)
    assert f"mean rank of {len(summary)}" in heading


@WITH_FIGURES
def test_figures_of_images(page):
    mnist = summarize(pd.read_csv(RESULTS / "mnist.csv"), {"auc": "AUC"}, "digit")["AUC"]
    files = [pd.read_csv(RESULTS / f"caltech{name}.csv") for name in ("", "_pretrained")]
    files[1] = files[1][files[1]["detector"] == "G2D pretrained"]
    caltech = pd.concat(files).groupby(["detector", "categories"])["auc"].mean()
    rows = list(typed_table(page, "| | MNIST, one digit normal"))
    assert len(rows) >= 6
    for detector, figures in rows:
        assert figures[:1] == rounded([mnist.get(detector, float("nan"))])
        assert figures[1:] == rounded(caltech[detector].loc[[1, 3, 5]].tolist())


@WITH_FIGURES
def test_figures_of_parts(page):
    runs = pd.read_csv(RESULTS / "inspection.csv")
    runs["images"] = runs["images"].where(runs["images"] == "magnetic tiles", "boards")
    columns = ["auc", "pixel_auc_within", "aupro", "f1"]
    means = runs.groupby(["detector", "images"])[columns].mean()
    rows = list(typed_table(page, "| | boards: image AUC"))
    assert len(rows) >= 4
    for detector, figures in rows:
        boards, tiles = (means.loc[detector, kind][:3] for kind in ("boards", "magnetic tiles"))
        assert figures == rounded([*boards, *tiles])
    pattern = r"F1 of PatchDetector is (\.\d+) on boards and (\.\d+) on tiles"
    typed = [float(figure) for pair in re.findall(pattern, page.read_text()) for figure in pair]
    assert bool(typed) == (page.parent == ROOT)
    if typed:
        assert typed == rounded(means["f1"]["PatchDetector"][["boards", "magnetic tiles"]].tolist())


@WITH_FIGURES
def test_figures_of_video(page):
    means = pd.read_csv(RESULTS / "ped2.csv").groupby("detector")
    means = means[["auc", "macro_auc", "eer", "pixel_eer"]].mean()
    rows = list(typed_table(page, "| Ped2 | frame AUC"))
    assert len(rows) >= 4
    for detector, figures in rows:
        assert figures == rounded(means.loc[detector].tolist())


def test_times_among_the_questions():
    """They are rounded up, to at most 2.5 times what was measured."""
    measured = pd.read_csv(RESULTS / "times.csv")
    rows = raw_table(ROOT / "docs" / "faq.md", "| detector | data | fit, about | score, about")
    assert [row[:2] for row in rows] == measured[["detector", "data"]].to_numpy().tolist()
    for (_, _, *typed), (*_, fit, score) in zip(rows, measured.itertuples(), strict=True):
        for cell, time in zip(typed, (fit, score), strict=True):
            assert time <= float(cell.split()[0]) <= 2.5 * time


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
