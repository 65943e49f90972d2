"""What the papers report, what is measured here, and what others reach, side by side.

Reads the CSV files that the other benchmarks wrote; measures nothing itself.

    python -m benchmarks.comparison
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.detectors import PYOD_PATHS
from benchmarks.report import summarize


@dataclass(frozen=True)
class Figure:
    """A figure of merit, and where to find it.

    Attributes
    ----------
    task, measure : str
        What is detected, and how that is judged.
    paper : str
        What a paper reports, and in which of its tables; empty if none does.
    stem : str
        Name of the CSV file, and of the page beside it; empty if nothing was measured here.
    column, by : str
        Where the figure is, and what it is averaged over after the seeds.
    ours : str
        The detector of this package, at its defaults.
    where : dict
        Values of columns that the rows to take have.
    lower_is_better : bool
        Whether this is a rate of errors.
    """

    task: str
    measure: str
    paper: str = ""
    stem: str = ""
    column: str = "auc"
    by: str = "table"
    ours: str = "G2D"
    where: Mapping[str, Any] = field(default_factory=dict)
    lower_is_better: bool = False


def _caltech(n_categories: int, auc: str, f1: str) -> list[Figure]:
    task = f"Caltech, {n_categories} normal categor{'y' if n_categories == 1 else 'ies'}"
    common: dict[str, Any] = {"stem": "caltech", "by": "categories"}
    where = {"categories": n_categories}
    return [
        Figure(task, "AUC", f"{auc} (Table 2)", where=where, **common),
        Figure(task, "F1, normal", f"{f1} (Table 2)", column="f1_normal", where=where, **common),
    ]


_PED2: dict[str, Any] = {"stem": "ped2", "by": "scene", "lower_is_better": True}
_PUZZLES: dict[str, Any] = {
    "stem": "puzzles",
    "by": "frames",
    "ours": "AVID",
    "where": {"frames": "without 3"},
    "lower_is_better": True,
}
SECTIONS = {
    "Figures of the paper on G2D (WACV 2021)": [
        Figure("Frames of UCSD Ped2", "EER", ".11 (Table 1)", column="eer", **_PED2),
        *_caltech(1, ".957", ".945"),
        *_caltech(3, ".951", ".922"),
        *_caltech(5, ".939", ".913"),
        Figure(
            "MNIST, a digit among 50 % others",
            "F1, normal",
            "only drawn (Fig. 5)",
            "outlier_share",
            "f1_normal",
            "digit",
            where={"share": 0.5, "threshold": "default"},
        ),
    ],
    "Figures of the paper on AVID (ACCV 2018)": [
        Figure("Frames of UCSD Ped2", "EER", ".14 (Table 1)", column="eer", ours="AVID", **_PED2),
        Figure(
            "Pixels of UCSD Ped2",
            "pixel-level EER",
            ".15 (Table 1)",
            column="pixel_eer",
            ours="AVID",
            **_PED2,
        ),
        Figure("Frames of UCSD Ped1", "EER", ".123 (Table 1)"),
        Figure("Pixels of UCSD Ped1", "pixel-level EER", ".144 (Table 1)"),
        Figure("Frames of UMN", "EER", ".026 (Table 2)"),
        Figure("Frames of UMN", "AUC", ".996 (Table 2)"),
        Figure(
            "Puzzles of digits without 3",
            "EER",
            ".21 (section 4.2)",
            column="image_eer",
            **_PUZZLES,
        ),
        Figure("Tiles of these puzzles", "EER", ".29 (section 4.2)", column="eer", **_PUZZLES),
    ],
    "Figures that no paper has": [
        Figure("22 tables of ADBench", "AUC", stem="tabular"),
        Figure(
            "22 tables of ADBench", "average precision", stem="tabular", column="average_precision"
        ),
        Figure("22 tables of ADBench", "EER", stem="tabular", column="eer", lower_is_better=True),
        Figure("MNIST, a digit among all others", "AUC", stem="mnist", by="digit"),
        Figure("Flawed magnetic tiles", "AUC", stem="magnetic_tiles", by="images", ours="AVID"),
        Figure(
            "Pixels of magnetic tiles",
            "AUC",
            stem="magnetic_tiles",
            column="pixel_auc",
            by="images",
            ours="AVID",
        ),
        Figure("Exchanged cells of five tables", "AUC", stem="cells", ours="AVID"),
        Figure("Frames of UCSD Ped2", "AUC", stem="ped2", by="scene", ours="fixed camera"),
        Figure("Frames of UCSD Ped2", "EER", column="eer", ours="fixed camera", **_PED2),
        Figure(
            "Pixels of UCSD Ped2",
            "pixel-level EER",
            column="pixel_eer",
            ours="fixed camera",
            **_PED2,
        ),
    ],
}
HEADINGS = [
    "",
    "figure",
    "the paper",
    "this package",
    "as published, here",
    "best of PyOD",
    "best other baseline",
]
NOT_MEASURED = "not measured"
PUBLISHED = "_published"  # ends the names of pages on the published methods


def is_pyod(detector: str) -> bool:
    """Tell PyOD's detectors, on images named with what they see, from other baselines."""
    return detector.removesuffix(" pixels").removesuffix(" features") in PYOD_PATHS


def _is_baseline(detector: str) -> bool:
    ours = detector.startswith(("G2D", "AVID", "fixed camera"))
    return not (ours or is_pyod(detector) or "grid known" in detector)


def read(stem: str, folder: Path) -> pd.DataFrame:
    """Read the results of a page; the published method has the seeds of its own page, if any."""
    results = pd.read_csv(folder / f"{stem}.csv")
    path = folder / f"{stem}{PUBLISHED}.csv"
    if path.exists():
        published = pd.read_csv(path)
        results = pd.concat([results[~results.detector.isin(published.detector)], published])
    return results


def row(figure: Figure, folder: Path) -> list[str]:
    """One line of the table, in the order of `HEADINGS`."""
    if not figure.stem:
        return [figure.task, figure.measure, figure.paper, NOT_MEASURED, "", "", ""]
    results = read(figure.stem, folder)
    for column, value in figure.where.items():
        results = results[results[column] == value]
    means = summarize(results, {"auc": "AUC", figure.column: "figure"}, figure.by)["figure"]
    means = means.sort_values(ascending=figure.lower_is_better)

    def best(detectors: list[str]) -> str:
        return detectors[0] if detectors else ""

    published = f"{figure.ours} as published"
    columns = [
        figure.ours,
        published if published in means else "",
        best([name for name in means.index if is_pyod(name)]),
        best([name for name in means.index if _is_baseline(name)]),
    ]
    chosen = means[[name for name in columns if name]].map(_digits)
    winner = chosen.min() if figure.lower_is_better else chosen.max()

    def written(name: str) -> str:
        if not name:
            return ""
        digits = f"**{chosen[name]}**" if chosen[name] == winner else chosen[name]
        return digits if name in (figure.ours, published) else f"{digits} {name}"

    head = [f"[{figure.task}]({figure.stem}.md)", figure.measure, figure.paper]
    return head + [written(name) for name in columns]


def _digits(value: float) -> str:
    return f"{value:.3f}".lstrip("0")


def repeat(stem: str, folder: Path) -> str:
    """Find the command that a page says repeats it."""
    page = (folder / f"{stem}.md").read_text()
    match = re.search(r"`(python -m benchmarks\.[^`]*)` repeats it", page)
    if match is None:
        raise ValueError(f"{stem}.md does not say which command repeats it.")
    return match[1]


def page(folder: Path) -> str:
    """Make the whole page, as Markdown."""
    parts = [
        "# The papers, this package and PyOD side by side",
        "Made by `python -m benchmarks.comparison` from the CSV files beside this page. This "
        "package is at its defaults, a mean over seeds; as published is `from_paper(...)` of the "
        "same detector, a mean over the seeds that [its pages](../reproducing.md) name. EER, the "
        "equal error rate, is better when lower. The best figure of a line is in **bold**, whoever "
        "it belongs to. The best of PyOD's detectors and of the other baselines is picked by these "
        "very test figures, line by line, which flatters them. Where a cell is empty nothing was "
        "measured.",
        "A paper's figure tells what to expect and is no competitor: data, split and protocol "
        "differ. Caltech-101 stands in for the paper's Caltech-256, puzzles made here for the "
        "authors' frames, and on Ped2 all frames are pooled, at half resolution. The paper does "
        "not say whose F1 it reports; here it is that of the normal class. Each page says what "
        "its protocol is.",
    ]
    for title, figures in SECTIONS.items():
        table = pd.DataFrame([row(figure, folder) for figure in figures], columns=HEADINGS)
        parts += [f"## {title}", table.to_markdown(index=False, disable_numparse=True)]
    stems = [
        stem
        for first in dict.fromkeys(f.stem for fs in SECTIONS.values() for f in fs if f.stem)
        for stem in (first, first + PUBLISHED)
        if (folder / f"{stem}.csv").exists()
    ]
    parts += [
        "## The commands",
        "`DIR` is the folder with the data, which is not part of this repository; each page says "
        "which files it holds.",
        "\n\n".join(f"[{stem}]({stem}.md)\n```\n{repeat(stem, folder)}\n```" for stem in stems),
    ]
    return "\n\n".join(parts) + "\n"


def write(folder: Path) -> Path:
    """Write the page beside the CSV files, if it would change."""
    path = folder / "comparison.md"
    text = page(folder)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
    return path


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    print(write(parser.parse_args().output).read_text())


if __name__ == "__main__":
    main()
