"""What the benchmarks' commands share: options, the loop over detectors, the CSV file."""

from __future__ import annotations

import argparse
import itertools
import shlex
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from sklearn_g2d.metrics import (
    equal_error_rate,
    outlier_average_precision_score,
    outlier_f1_score,
    outlier_roc_auc_score,
)
from sklearn_g2d.training import cuda_arithmetic

T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    """A question that every detector is put to.

    Attributes
    ----------
    facts : dict
        What stands in each of its result rows, such as the number of training rows.
    measure : callable
        Given a detector's name, fits it and returns its figures in one or more rows.
    """

    facts: dict[str, Any]
    measure: Callable[[str], list[dict[str, Any]]]


def make_parser(doc: str, name: str, data_help: str) -> argparse.ArgumentParser:
    """Options that all benchmarks on data have; `name` is the module's."""
    parser = argparse.ArgumentParser(f"python -m benchmarks.{name}", description=doc.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help=data_help)
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    parser.add_argument("--name", default=name, help="stem of the written files")
    parser.add_argument("--detectors", nargs="+", help="only these")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--tf32",
        action="store_true",
        help="on a GPU, faster arithmetic: less exact, not deterministic",
    )
    parser.add_argument("--resume", action="store_true", help="keep the rows already written")
    return parser


def choose(
    parser: argparse.ArgumentParser, names: Iterable[str], factories: dict[str, T]
) -> dict[str, T]:
    """Pick detectors by name; an unknown name ends the command."""
    unknown = sorted(set(names) - set(factories))
    if unknown:
        parser.error(f"unknown detectors {unknown}; choose from {sorted(factories)}")
    return {name: factories[name] for name in names}


def command(parser: argparse.ArgumentParser, name: str, **options: Sequence[object]) -> str:
    """Say what to type for the same files; options at their defaults are left out."""
    parts = [parser.prog, "--data DIR"]
    for option, values in {**options, "name": [name]}.items():
        default = parser.get_default(option)
        if set(values) != set(default if isinstance(default, list) else [default]):
            parts.append(f"--{option.replace('_', '-')}")
            parts += (shlex.quote(str(value)) for value in values if value is not True)
    return " ".join(parts)


def run(
    key: str,
    values: Iterable[Any],
    open_case: Callable[[Any, int], Case],
    detectors: Collection[str],
    args: argparse.Namespace,
) -> pd.DataFrame:
    """Put every detector to every case; the CSV file is written after each.

    Parameters
    ----------
    key : str
        Column that tells the cases of a seed apart, such as "table".
    values : iterable
        What stands in it, case by case.
    open_case : callable
        Given a value and a seed, loads a case.
    detectors : collection of str
        Their names.
    args : Namespace
        Options of `make_parser`, and `seeds`.

    Returns
    -------
    DataFrame
        The rows written, with those kept by `resume`.
    """
    args.output.mkdir(parents=True, exist_ok=True)
    csv = args.output / f"{args.name}.csv"
    rows: list[dict] = []
    if args.resume and csv.exists():
        rows = pd.read_csv(csv).to_dict("records")
    done = {(row[key], row["seed"], row["detector"]) for row in rows}
    width = max(16, *map(len, detectors))
    card = {"card": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    torch.set_num_threads(args.threads)
    arithmetic = cuda_arithmetic(tf32=args.tf32, deterministic=not args.tf32)
    with threadpool_limits(args.threads), arithmetic:
        for value, seed in itertools.product(values, args.seeds):
            pending = [name for name in detectors if (value, seed, name) not in done]
            if not pending:
                continue
            case = open_case(value, seed)
            for name in pending:
                try:
                    measured = case.measure(name)
                except ValueError as error:  # CBLOF where no clustering separates
                    measured = [{"error": str(error)}]
                head = {key: value, "seed": seed, "detector": name, **case.facts, **card}
                rows += [head | figures for figures in measured]
                last = measured[-1]
                outcome = f"AUC {last['auc']:.3f}" if "auc" in last else last["error"]
                print(f"{value:<20} seed {seed} {name:<{width}} {outcome}", flush=True)
                pd.DataFrame(rows).to_csv(csv, index=False, float_format="%.5g")
    return pd.DataFrame(rows)


def quality(y_test: NDArray, scores: NDArray, predicted: NDArray) -> dict[str, float]:
    """Figures by name, those of a class being the outliers'."""
    return {
        "auc": outlier_roc_auc_score(y_test, scores),
        "average_precision": outlier_average_precision_score(y_test, scores),
        "f1": outlier_f1_score(y_test, predicted),
        "eer": equal_error_rate(y_test, scores),
        "false_alarms": float(np.mean(predicted[y_test == 1] == -1)),
    }
