"""Does bfloat16 pay in convolutional training? Seconds a step, and AUC, beside float32.

Step: one of G2D's GAN as published on 28 x 28 images, with the authors' five critic steps and one
of the generator, for networks of several numbers of channels, and one of AVID's default on
154 x 154 images; the ways of computing take turns. AUC: G2D as published on digits that
scikit-learn ships, one class normal, half of it in training.

    python -m benchmarks.precision
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits

from benchmarks.overhead import trainer_of
from benchmarks.report import threads, write_markdown
from benchmarks.tabular import split_rows
from sklearn_g2d import AVIDDetector, G2DOutlierDetector
from sklearn_g2d.avid import MaskedInpainting
from sklearn_g2d.metrics import outlier_roc_auc_score
from sklearn_g2d.training.trainer import Trainer

Precision = Literal["float32", "bfloat16"]

# What plain PyTorch does, then what the package does on processors without and with bfloat16.
WAYS: dict[str, tuple[Precision, torch.memory_format]] = {
    "float32, plain": ("float32", torch.contiguous_format),
    "float32, channels last": ("float32", torch.channels_last),
    "bfloat16, channels last": ("bfloat16", torch.channels_last),
}


@contextmanager
def layout(memory_format: torch.memory_format) -> Iterator[None]:
    """Let networks use another memory layout than theirs, which the package has no option for."""
    modules: list[Any] = [m for name, m in sys.modules.items() if name.startswith("sklearn_g2d.")]
    before = {module: module.LAYOUT for module in modules if hasattr(module, "LAYOUT")}
    for module in before:
        module.LAYOUT = memory_format
    try:
        yield
    finally:
        for module, default in before.items():
            module.LAYOUT = default


def make_gan(precision: Precision, channels: int) -> Trainer:
    """Make the trainer of G2D's GAN as published."""
    X = np.random.default_rng(0).random((1000, 1, 28, 28))
    detector = G2DOutlierDetector.from_paper(
        data="images",
        generator__n_critic=5,
        generator__generator_network__channels=channels,
        generator__critic_network__channels=channels,
        precision=precision,
        random_state=0,
    )
    return trainer_of(detector, "generator", X)


def make_avid(precision: Precision) -> Trainer:
    """Make AVID's default trainer."""
    X = np.random.default_rng(0).normal(size=(50, 1, 154, 154))
    # By default the detector steps every third time; here always, or rounds would not compare.
    training = MaskedInpainting(detector_every=1)
    detector = AVIDDetector(region_size=14, training=training, precision=precision, random_state=0)
    return trainer_of(detector, "networks", X)


def trainers(channels: list[int]) -> dict[str, Callable[[Precision], Trainer]]:
    """Give the function that makes each trainer, by name, for a precision."""
    gans = {f"G2D, {n} channels": partial(make_gan, channels=n) for n in channels}
    return gans | {"AVID": make_avid}


def time_steps(name: str, make: Callable[[Precision], Trainer], rounds: int) -> Iterator[dict]:
    """Seconds of single steps; the first round, which warms up, is left out."""
    made = {}
    for way, (precision, memory_format) in WAYS.items():
        with layout(memory_format):
            made[way] = make(precision)
    for number in range(rounds + 1):
        for way, (_, memory_format) in WAYS.items():
            with layout(memory_format):
                start = time.perf_counter()
                made[way].step()
                seconds = time.perf_counter() - start
            if number:
                yield {"network": name, "round": number, "way": way, "seconds": seconds}


def detect(digit: int, seed: int) -> Iterator[dict]:
    """AUC of G2D as published in either precision."""
    digits = load_digits()
    split = split_rows(digits.images[:, np.newaxis], digits.target == digit, seed)
    X_train, X_test, y_test = split
    for precision in ("float32", "bfloat16"):
        detector = G2DOutlierDetector.from_paper(
            data="images",
            generator__n_critic=5,
            classifier__max_steps=1000,
            precision=precision,
            random_state=seed,
        )
        scores = detector.fit(X_train).score_samples(X_test)
        auc = outlier_roc_auc_score(y_test, scores)
        yield {"digit": digit, "seed": seed, "precision": precision, "auc": auc}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 64, 128])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--digits", type=int, nargs="+", default=[3, 8])
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    with threadpool_limits(args.threads):
        makers = trainers(args.channels)
        rows = [row for name, make in makers.items() for row in time_steps(name, make, args.rounds)]
        steps = pd.DataFrame(rows)
        aucs = pd.DataFrame([row for digit in args.digits for row in detect(digit, 0)])
    steps.to_csv(args.output / "precision.csv", index=False, float_format="%.5g")
    seconds = steps.pivot_table("seconds", "network", "way", aggfunc="median")
    seconds = seconds.loc[list(makers), list(WAYS)]
    faster = seconds[["float32, plain"]].to_numpy() / seconds
    auc = aucs.pivot_table("auc", "digit", "precision")[["float32", "bfloat16"]]
    name = torch.cpu.get_capabilities().get("cpu_name", "unknown processor")
    write_markdown(
        args.output / "precision.md",
        "Precision and layout of convolutional training",
        [
            "Steps of G2D's GAN as published on 28 x 28 images, and of AVID's default on 154 x "
            f"154 ({name}, {threads(args)}, {args.rounds} rounds in which the ways take "
            "turns): median seconds, then how many times faster than plain float32. The authors "
            "have 256 channels. Last, the AUC of G2D as published on digits of scikit-learn, 300 "
            "steps, seed 0.",
            "`python -m benchmarks.precision` repeats it.",
        ],
        [seconds, faster, auc],
    )
    print(seconds.to_markdown(floatfmt=".3f"), faster.to_markdown(floatfmt=".2f"), sep="\n\n")
    print(auc.to_markdown(floatfmt=".3f"))


if __name__ == "__main__":
    main()
