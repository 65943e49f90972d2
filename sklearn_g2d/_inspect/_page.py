"""The page of a report: one HTML file without scripts, and pictures in folders beside it."""

from __future__ import annotations

from datetime import datetime
from html import escape
from pathlib import Path
from urllib.parse import quote

from sklearn_g2d._inspect._results import OVERLAYS, PHOTOGRAPHS, Summary
from sklearn_g2d._inspect._scoring import Photograph
from sklearn_g2d._version import __version__

# Colour-blind readers can tell blue from orange, and verdicts are also words. On narrow screens
# each row of the table becomes a block with the names of its columns.
_STYLE = """
body { font: 1rem/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto;
  padding: 1rem; max-width: 75rem; }
h1, h2 { line-height: 1.2; }
a { color: #00558a; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .5rem; border-bottom: 1px solid #bbb; }
td { overflow-wrap: anywhere; }
img { display: block; width: 14rem; max-width: 100%; height: auto; }
.number { font-variant-numeric: tabular-nums; }
.flagged { border-left: .5rem solid #d55e00; background: #fff4ec; }
.normal { border-left: .5rem solid #0072b2; }
.flagged .verdict { font-weight: bold; }
.scale { display: inline-block; width: 8rem; height: 1em; vertical-align: middle;
  background: linear-gradient(to right, #21918c, #5ec962, #fde725); border: 1px solid #444; }
@media (max-width: 45rem) {
  thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  tr { display: grid; grid-template-columns: 1fr 1fr; padding: .5rem; margin-bottom: 1rem; }
  td { border: 0; padding: .25rem; }
  td.wide { grid-column: 1 / -1; }
  td[data-name]::before { content: attr(data-name) ": "; color: #444; }
}
"""


def write_page(summary: Summary) -> Path:
    """Write index.html.

    Parameters
    ----------
    summary : Summary
        The results; their pictures must have been written before.

    Returns
    -------
    Path
        The file that was written.
    """
    new = summary.options.new
    title = _text(f"Inspection of {new.resolve().name or new}")
    rows = "\n".join(_row(photograph) for photograph in summary.by_anomaly)
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p><strong>{_text(summary.verdict())}</strong></p>
<ul>
{_items(_facts(summary))}
</ul>
{_known_bad(summary)}
<h2>Photographs, the most anomalous first</h2>
<p>{_legend(summary)}</p>
<table role="table">
<thead role="rowgroup"><tr role="row"><th role="columnheader" scope="col">Photograph</th>
<th role="columnheader" scope="col">Where it is anomalous</th>
<th role="columnheader" scope="col">File</th>
<th role="columnheader" scope="col">Verdict</th>
<th role="columnheader" scope="col">Above the threshold</th>
<th role="columnheader" scope="col">p-value</th></tr></thead>
<tbody role="rowgroup">
{rows}
</tbody>
</table>
<p>Written {datetime.now().astimezone():%Y-%m-%d %H:%M %Z} by sklearn_g2d {__version__}. The same
figures are in <a href="scores.csv">scores.csv</a>, in the order of the files' names.</p>
</main>
</body>
</html>
"""
    path: Path = summary.options.out / "index.html"
    path.write_text(page, encoding="utf-8")
    return path


def _text(text: str) -> str:
    """Escape a text for HTML, and replace bytes in file names that are not valid UTF-8."""
    return escape(text.encode("utf-8", "replace").decode("utf-8"))


def _items(lines: list[str]) -> str:
    return "\n".join(f"<li>{_text(line)}</li>" for line in lines)


def _facts(summary: Summary) -> list[str]:
    detector, options = summary.detector, summary.options
    n_good = len(detector.calibration_scores_)
    height, width = detector.image_shape_[1:]
    # Three channels may come from gray photographs, too.
    gray = ", in gray" if detector.image_shape_[0] == 1 else ""
    good = f"the model {options.model}" if options.model else f"the folder {options.good}"
    rate = f"{100 * summary.false_alarm_rate:.2g} %"
    # With --groups there are weights, and the rate is for parts that the detector has not seen.
    new = "new " if detector.calibration_weights_ is not None else ""
    lines = [
        f"The detector learned from {n_good} photographs of good parts ({good}), at {width} x "
        f"{height} pixels{gray}.",
        f"Photographs with a score below the threshold, {detector.offset_:.4g}, are flagged. About "
        f"{rate} of photographs of {new}good parts, taken in the same way, are flagged, too: these "
        "are false alarms.",
    ]
    if not summary.figures:
        lines.append(
            "A part that is not flagged may still be bad. How many bad parts pass is unknown; "
            "--known-bad measures it."
        )
    lines.append(
        f"Scoring took {1000 * summary.seconds / len(summary.photographs):.0f} ms for each "
        "photograph."
    )
    if summary.n_unreadable:
        lines.append(
            f"{summary.n_unreadable} of the files cannot be read. They count as flagged, because "
            "they may show anomalous parts."
        )
    if summary.warning:
        lines.append(summary.warning)
    if summary.passed_over:
        lines.append(summary.passed_over)
    stretched = sum(photograph.note.startswith("Stretched") for photograph in summary.photographs)
    if stretched:
        lines.append(
            f"{stretched} of the photographs have other proportions than {width} x {height}. They "
            "were stretched, which may make good parts look anomalous."
        )
    return lines


def _known_bad(summary: Summary) -> str:
    if not summary.figures:
        return ""
    missed = [photograph.name for photograph in summary.known_bad if not photograph.is_flagged]
    names = f"<p>Missed:</p>\n<ul>\n{_items(missed)}\n</ul>" if missed else ""
    explained = [
        *summary.sentences_of_known_bad(),
        "AUC: how often a bad photograph has a lower score than a good one (1 is perfect, 0.5 is "
        "chance). F1: how well the verdicts find bad photographs without false alarms (1 is "
        "perfect). EER: the fraction of wrong verdicts, at the threshold where it is the same for "
        "good and for bad photographs (0 is perfect).",
    ]
    return f"""<h2>Known bad photographs</h2>
<ul>
{_items(explained)}
</ul>
{names}
<p>All known bad photographs are in <a href="known_bad.csv">known_bad.csv</a>.</p>"""


def _legend(summary: Summary) -> str:
    low, high = summary.detector.map_range_
    return (
        "Colours show where a photograph is anomalous, in standard deviations of places in good "
        f'ones: {(low + high) / 2:.1f} <span class="scale" role="img" aria-label="dark green to '
        f'yellow"></span> {high:.1f} and more. Blue outlines surround places that are rare in '
        "good photographs: 5 % of good photographs have one. &ldquo;Above the threshold&rdquo; is "
        "the threshold minus the score, in the same units: it is positive if the photograph is "
        "flagged. The p-value is about the fraction of good photographs that look at least as "
        "anomalous."
    )


def _row(found: Photograph) -> str:
    name = _text(found.name)
    pictures = '<td role="cell" class="wide" colspan="2">no picture</td>'
    if found.picture:
        # Keep bytes that are not valid UTF-8 in the address: the file has them in its name.
        file = quote(found.picture, errors="surrogateescape")
        pictures = "\n".join(
            f'<td role="cell"><a href="{folder}/{file}"><img src="{folder}/{file}" loading="lazy" '
            f'alt="{alternative}"></a></td>'
            for folder, alternative in (
                (PHOTOGRAPHS, f"Photograph {name}"),
                (OVERLAYS, f"Photograph {name} with colours where it is anomalous"),
            )
        )
    note = f"<br>{_text(found.note)}" if found.note else ""
    above = f"{found.above_threshold:+.2f}" if found.is_readable else "unknown"
    p_value = "unknown" if found.p_value is None else f"{found.p_value:.3g}"
    return f"""<tr role="row" class="{"flagged" if found.is_flagged else "normal"}">
{pictures}
<td role="cell" class="wide">{name}{note}</td>
<td role="cell" class="wide verdict">{found.verdict}</td>
<td role="cell" class="number" data-name="Above the threshold">{above}</td>
<td role="cell" class="number" data-name="p-value">{p_value}</td></tr>"""
