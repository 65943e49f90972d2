"""What pyproject.toml asks for and allows, what is used, and what PyPI is told, agree."""

import ast
import re
import runpy
import tomllib
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.version import Version

import sklearn_g2d
from sklearn_g2d.utils import versions

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# scikit-learn may change these in any version, which is why pyproject.toml has an upper bound.
# Another one needs a reason as good as these; the bound is raised once the tests pass beyond it.
PRIVATE_NAMES = {
    "sklearn.utils._param_validation.HasMethods": "parameters are refused in scikit-learn's words",
    "sklearn.utils._param_validation.Interval": "the same",
    "sklearn.utils._param_validation.StrOptions": "the same",
    "sklearn.utils._safe_indexing": "rows of any kind of table, as GridSearchCV takes them",
    "sklearn.utils._metadata_requests._routing_enabled": "`groups` reach an estimator only then",
    "sklearn.utils._missing.is_pandas_na": "pandas need not be installed",
    "sklearn.utils.validation._check_method_params": "fit parameters of a fold's rows",
    "sklearn.utils.validation._check_sample_weight": "weights are refused in scikit-learn's words",
    "sklearn.utils.validation._num_samples": "rows of any kind of table are counted",
    "sklearn.metrics._scorer._SCORERS": "`register_scorers` adds names; nothing public does",
    "sklearn.metrics._scorer._Scorer": "scorers by name need its routing of sample weights",
}


def test_the_oldest_versions_are_the_oldest_that_are_allowed():
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    oldest = dict(line.split("==") for line in lines if not line.startswith("#"))
    asked = PROJECT["dependencies"] + [
        requirement
        for extra in ("images", "onnx", "plot", "progress", "video")
        for requirement in PROJECT["optional-dependencies"][extra]
    ]
    for requirement in map(Requirement, asked):
        if requirement.name == "torch":
            continue  # see the file
        (bound,) = (bound for bound in requirement.specifier if bound.operator != "<")
        pinned = Version(oldest[requirement.name])
        assert bound.operator == ">="
        assert pinned in requirement.specifier
        parts = len(Version(bound.version).release)
        assert pinned.release[:parts] == Version(bound.version).release, requirement.name


def private_names(text):
    """Private names of scikit-learn that a module imports, with the modules they come from."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if re.match(r"sklearn\.(.*\.)?_(?!_)", name)}


def test_private_names_of_scikit_learn_are_few_and_bounded():
    used = set()
    for path in Path(sklearn_g2d.__file__).parent.rglob("*.py"):
        used |= private_names(path.read_text(encoding="utf-8"))
    assert used == PRIVATE_NAMES.keys()
    (bound,) = (
        requirement.specifier
        for requirement in map(Requirement, PROJECT["dependencies"])
        if requirement.name == "scikit-learn"
    )
    assert "1.9.99" in bound
    assert "1.10" not in bound


def test_private_names_are_found_however_they_are_imported():
    text = (
        "import sklearn.tree._tree\nfrom sklearn.utils import (\n    _a,\n    b,\n)\n"
        "def f():\n    from sklearn._loss import c\nfrom sklearn_g2d import _base\n"
    )
    assert private_names(text) == {"sklearn.tree._tree", "sklearn.utils._a", "sklearn._loss.c"}


def test_versions_are_shown_of_all_that_users_install(capsys, monkeypatch):
    extras = PROJECT["optional-dependencies"]
    asked = PROJECT["dependencies"] + [
        requirement
        for extra in extras.keys() - {"benchmarks", "dev", "docs"}
        for requirement in extras[extra]
    ]
    names = {Requirement(requirement).name for requirement in asked} - {"tqdm"}
    monkeypatch.setattr(versions, "_PACKAGES", (*versions._PACKAGES, "not-installed"))
    sklearn_g2d.show_versions()
    shown = dict(re.findall(r"^ *(\S.*?): (.*)$", capsys.readouterr().out, flags=re.MULTILINE))
    assert names <= shown.keys()
    assert shown["sklearn_g2d"] == sklearn_g2d.__version__
    assert Version(shown["numpy"]) >= Version("2")
    assert shown["not-installed"] == "None"
    assert int(shown["threads"]) >= 1


def test_the_file_for_citations_has_the_version():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.*)$", text, flags=re.MULTILINE) == [sklearn_g2d.__version__]


def test_the_address_of_the_repository_is_one():
    urls = PROJECT["urls"]
    assert {url for url in urls.values() if not url.startswith(urls["Repository"])} == set()


def test_links_of_the_description_are_absolute(monkeypatch):
    told = {}
    monkeypatch.setattr(setuptools, "setup", lambda **kwargs: told.update(kwargs))
    absolute = runpy.run_path(str(ROOT / "setup.py"))["absolute"]
    assert f"({PROJECT['urls']['Repository']}/blob/HEAD/CHANGELOG.md)" in told["long_description"]
    text = "[a](docs/a.md#b) ![p](p.png) [c](https://c.org/d) [e](#f)\n```\nx[0](y)\n```\n[g](h)"
    assert absolute(text, "https://r") == (
        "[a](https://r/blob/HEAD/docs/a.md#b) ![p](https://r/raw/HEAD/p.png) "
        "[c](https://c.org/d) [e](#f)\n```\nx[0](y)\n```\n[g](https://r/blob/HEAD/h)"
    )


@pytest.mark.parametrize(
    ("url", "heading", "n_obstacles"),
    [
        ("https://forge.org/sklearn_g2d", "## 0.1.0 (2026-12-01)", 0),
        ("https://example.invalid/sklearn_g2d", "## 0.1.0 (2026-12-01)", 1),
        ("https://example.invalid/sklearn_g2d", "## Unreleased (0.1.0)", 2),
    ],
)
def test_no_release_without_an_address_and_a_date(tmp_path, url, heading, n_obstacles):
    obstacles = runpy.run_path(str(ROOT / ".ci" / "package.py"))["obstacles"]
    (tmp_path / "pyproject.toml").write_text(f'[project.urls]\nRepository = "{url}"\n')
    (tmp_path / "CHANGELOG.md").write_text(f"# Changes\n\n{heading}\n")
    assert len(obstacles(tmp_path)) == n_obstacles
