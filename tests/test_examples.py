"""Every example of the gallery runs as a script, and is laid out as a page."""

import csv
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"
EXAMPLES = sorted(FOLDER.glob("*/plot_*.py"))
QUICK = {"plot_first_detector"}


def test_there_are_examples():
    assert {path.stem for path in EXAMPLES} > QUICK


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_is_a_page_with_a_picture(path):
    text = path.read_text(encoding="utf-8")
    title = re.match(r'"""\n(.+)\n(=+)\n\n\S', text)
    assert title, "begins with a docstring that has a title"
    assert len(title[1]) == len(title[2])
    for heading, line in re.findall(r"^# %%\n# (.+)\n# (-+)$", text, flags=re.MULTILINE):
        assert len(heading) == len(line), heading
    n_shown = text.count("\nplt.show()\n")
    assert n_shown
    assert len(re.findall(r'^# Picture: [^"]+[.]\nplt\.show', text, flags=re.MULTILINE)) == n_shown


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[] if path.stem in QUICK else pytest.mark.slow)
        for path in EXAMPLES
    ],
)
def test_runs(path, tmp_path):
    environment = os.environ | {"MPLBACKEND": "Agg"}
    subprocess.run([sys.executable, path], cwd=tmp_path, env=environment, check=True)
    assert not list(tmp_path.iterdir()), "leaves nothing behind"


@pytest.mark.slow
def test_live_video(tmp_path):
    """Its runner comes with frame 25, and the cart, which looks unlike anybody, with frame 50."""
    script = Path(__file__).parents[1] / "examples" / "video" / "live_video.py"
    subprocess.run([sys.executable, script, "--csv", "rows.csv"], cwd=tmp_path, check=True)
    assert {path.name for path in tmp_path.iterdir()} == {"live_video_demo.mp4", "rows.csv"}
    rows = list(csv.DictReader((tmp_path / "rows.csv").open()))
    assert len(rows) == 100
    verdicts = [row["verdict"] for row in rows]
    assert verdicts[:25].count("-1") <= 2
    assert verdicts[35:].count("-1") >= 60
    assert [row["kind"] for row in rows[30:45]].count("speed") >= 12
    assert [row["kind"] for row in rows[52:]].count("looks") >= 20
    normal = [row for row in rows if row["verdict"] == "1"]
    assert {(row["kind"], row["top"]) for row in normal} == {("", "")}, "nobody is to blame"


def test_live_video_replaces_no_input(tmp_path, monkeypatch, capsys):
    """Nor does it learn first: wrong arguments are refused before anything is read."""
    script = Path(__file__).resolve().parents[1] / "examples" / "video" / "live_video.py"
    monkeypatch.chdir(tmp_path)
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(b"precious")
    for arguments, told in (
        ("a.mp4 b.mp4 b.mp4", "would replace"),
        ("a.mp4 b.mp4 c.mp4 --csv a.mp4", "would replace"),
        ("a.mp4 b.mp4 missing/c.mp4", "no folder"),
        ("a.mp4 b.mp4 c.txt", "must end in"),
        ("a.mp4 b.mp4 c.mp4 --size 7", "at least 8"),
        ("a.mp4 b.mp4 c.mp4 --frame-rate 1/0", "argument --frame-rate: '1/0' divides by zero"),
        ("a.mp4 b.mp4 c.mp4 --frame-rate fast", "invalid fraction value: 'fast'"),
    ):
        monkeypatch.setattr(sys, "argv", ["live_video.py", *arguments.split()])
        with pytest.raises(SystemExit):
            runpy.run_path(str(script), run_name="__main__")
        assert told in capsys.readouterr().err
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"precious"}
