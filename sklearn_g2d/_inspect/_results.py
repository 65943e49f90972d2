"""Results of the inspection of photographs, and the files of the report."""

from __future__ import annotations

import csv
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from sklearn_g2d._inspect._scoring import Photograph, batches, count, read
from sklearn_g2d.calibration import conformal_p_values
from sklearn_g2d.display import AnomalyMapDisplay
from sklearn_g2d.metrics import equal_error_rate, outlier_f1_score, outlier_roc_auc_score
from sklearn_g2d.patches import PatchDetector

# Names of the files and folders of a report.
_FILES = ("index.html", "scores.csv", "known_bad.csv")
OVERLAYS, PHOTOGRAPHS = "overlays", "photographs"

_COLUMNS = ("file", "score", "p_value", "verdict", "above_threshold", "overlay", "note")

# A spreadsheet takes a cell with such a start for a formula. The last four are full-width forms of
# the first four.
_STARTS_OF_FORMULAS = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")

# By default there are pictures of all flagged photographs, and of at least so many photographs.
_MOST_ANOMALOUS = 20

# Limit of a name inside a file name. With number and suffix it is short enough for all systems.
_MOST_CHARACTERS = 50


@dataclass
class Summary:
    """The contents of a report.

    Parameters
    ----------
    detector : PatchDetector
        A fitted detector with its threshold.
    options : Namespace
        Options of the command.
    n_passed_over : int
        Number of files that are not photographs.
    passed_over : str
        A sentence about the files that are not photographs; empty if there are none.
    warning : str
        A sentence about a problem of the good photographs; empty if there is none.
    photographs, known_bad : list of Photograph
        Results in the order of their names.
    seconds : float
        Time for scoring `photographs`.
    figures : dict of float
        Figures about the detection of the known bad photographs.
    """

    detector: PatchDetector
    options: Namespace
    n_passed_over: int = 0
    passed_over: str = ""
    warning: str = ""
    photographs: list[Photograph] = field(default_factory=list)
    known_bad: list[Photograph] = field(default_factory=list)
    seconds: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def by_anomaly(self) -> list[Photograph]:
        """Return unreadable files, and then the photographs with the most anomalous first."""
        return sorted(self.photographs, key=lambda photograph: -photograph.above_threshold)

    @property
    def n_flagged(self) -> int:
        """Count photographs that a person has to look at."""
        return sum(photograph.is_flagged for photograph in self.photographs)

    @property
    def n_unreadable(self) -> int:
        """Count files that cannot be read."""
        return sum(not photograph.is_readable for photograph in self.photographs)

    @property
    def false_alarm_rate(self) -> float:
        """Return the rate of false alarms at the threshold, by conformal prediction.

        The threshold of a detector that was fitted in Python may lie between two scores. Then the
        rate is interpolated between the rates of these scores.
        """
        known = self.detector.calibration_scores_, self.detector.calibration_weights_
        thresholds = np.unique(known[0])
        rates = conformal_p_values(np.nextafter(thresholds, -np.inf), *known)
        return float(np.interp(self.detector.offset_, thresholds, rates))

    def verdict(self) -> str:
        """Return the result in one sentence."""
        n, n_unreadable = len(self.photographs), self.n_unreadable
        flagged = self.n_flagged or "None"
        verb = "are" if self.n_flagged > 1 else "is"
        text = f"{flagged} of {n} photographs {verb} flagged"
        if n == 1:
            text = f"The photograph is {'' if self.n_flagged else 'not '}flagged"
        if n_unreadable:
            text += f"; files among them that cannot be read: {n_unreadable}"
        if self.n_passed_over:
            text += f"; files not judged, because of their endings: {self.n_passed_over}"
        return f"{text}."

    def sentences_of_known_bad(self) -> list[str]:
        """Return sentences about the detection of known bad photographs, and its measurement."""
        if not self.figures:
            return []
        missed = sum(not photograph.is_flagged for photograph in self.known_bad)
        n_good = len(self.detector.calibration_scores_)
        sentences = [
            f"Of {count(len(self.known_bad), 'known bad')}, {missed} "
            f"{'is' if missed == 1 else 'are'} missed (not flagged).",
            f"Known bad photographs against {n_good} good ones: "
            + ", ".join(f"{name} {value:.3f}" for name, value in self.figures.items())
            + ". Each good photograph was scored by a detector that had not seen it, and these "
            "scores also set the threshold. Nothing was learned from the bad ones.",
        ]
        if missed > len(self.known_bad) / 3:
            sentences.append(
                "Many are missed: try a larger --size first, which shows smaller flaws, and then a "
                "higher --false-alarms."
            )
        return sentences


def known_bad_figures(detector: PatchDetector, known_bad: list[Photograph]) -> dict[str, float]:
    """Compare known bad photographs with good photographs that were held out."""
    good = detector.calibration_scores_
    scores = np.append(good, [photograph.score for photograph in known_bad])
    labels = np.repeat([1, -1], [len(good), len(known_bad)])
    return {
        "AUC": outlier_roc_auc_score(labels, scores),
        "F1": outlier_f1_score(labels, np.where(scores < detector.offset_, -1, 1)),
        "EER": equal_error_rate(labels, scores),
    }


def clear_report(folder: Path, *, only_check: bool = False, overwrite: bool = True) -> None:
    """Remove an earlier report, and no other files.

    Parameters
    ----------
    folder : Path
        The folder of the report.
    only_check : bool, default=False
        Whether to check only that the report may be removed.
    overwrite : bool, default=True
        Whether an earlier report may be removed.

    Raises
    ------
    FileExistsError
        If the folder holds other files, or a report that may not be removed.
    """
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    pictures = [path for path in there if path.name in (OVERLAYS, PHOTOGRAPHS) and path.is_dir()]
    files = [path for path in there if path.name in _FILES and not path.is_dir()]
    for path in pictures:
        files += path.glob("[0-9]*_*.png")
    foreign = [path for path in there if path not in pictures and path not in files]
    if foreign:
        raise FileExistsError(
            f"--out {folder} holds {foreign[0].name}, which is not part of a report: choose a new "
            "folder."
        )
    if there and not overwrite:
        raise FileExistsError(
            f"--out {folder} holds a report already: choose a new folder, or add --overwrite."
        )
    for path in [] if only_check else files:
        path.unlink()


def write_overlays(detector: PatchDetector, summary: Summary, say: Callable[[str], None]) -> None:
    """Write pictures of the most anomalous photographs, without and with their maps."""
    readable = [photograph for photograph in summary.by_anomaly if photograph.is_readable]
    wanted = summary.options.overlays
    if wanted is None:
        wanted = max(_MOST_ANOMALOUS, sum(photograph.is_flagged for photograph in readable))
    chosen = readable[: min(wanted, len(readable))]
    if chosen:
        say(f"Drawing the {count(len(chosen), 'most anomalous')} ...")
    for number, photograph in enumerate(chosen, start=1):
        photograph.picture = f"{number:05d}_{photograph.path.stem[-_MOST_CHARACTERS:]}.png"
    for batch in batches(detector, chosen):
        images = read(detector, [photograph.path for photograph in batch])
        maps = detector.anomaly_map(images)
        # Both kinds of pictures need the maps, which take long to compute: give `save_overlays` an
        # object that returns the same maps twice.
        painted = SimpleNamespace(anomaly_map=lambda _, maps=maps: maps)
        names = [photograph.picture.removesuffix(".png") for photograph in batch]
        for folder, masks, alpha in (
            (OVERLAYS, maps >= detector.mask_threshold_, 0.6),
            (PHOTOGRAPHS, None, 0.0),
        ):
            AnomalyMapDisplay.save_overlays(
                painted,
                images,
                summary.options.out / folder,
                names,
                masks=masks,
                value_range=detector.map_range_,
                alpha=alpha,
            )


def write_table(photographs: list[Photograph], path: Path) -> None:
    """Write a CSV file, in the order of the files' names."""
    with open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        table = csv.writer(file)
        table.writerow(_COLUMNS)
        for found in photographs:
            above = found.above_threshold if found.is_readable else None
            overlay = f"{OVERLAYS}/{found.picture}" if found.picture else ""
            name, note = _no_formula(found.name), _no_formula(found.note)
            table.writerow([name, found.score, found.p_value, found.verdict, above, overlay, note])


def _no_formula(path: str) -> str:
    """Change a path that a spreadsheet would take for a formula; it still names the same file."""
    return f"./{path}" if path.startswith(_STARTS_OF_FORMULAS) else path
