"""Does bfloat16 pay in convolutional training? Seconds a step, and AUC, beside float32.

Step: one of the paper recipe's GAN on 28 x 28 images, five critic steps and one of the
generator, for networks of several widths, and one of AVID's default on 154 x 154 images, the
ways of computing taking turns. AUC: the paper recipe on digits that scikit-learn ships, one
class normal, half of it in training.

    python -m benchmarks.precision
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits

from benchmarks.report import write_markdown
from benchmarks.tabular import split_rows
from sklearn_g2d import G2DOutlierDetector
from sklearn_g2d.avid import _networks as inpainting
from sklearn_g2d.avid._models import ImagePlayers
from sklearn_g2d.avid._recipes import AVID_IMAGE_RECIPES
from sklearn_g2d.g2d import _image_networks as images
from sklearn_g2d.g2d._wgan import WGAN, WGANSettings
from sklearn_g2d.metrics import outlier_roc_auc_score
from sklearn_g2d.training import convolutions
from sklearn_g2d.training.runtime import Runtime
from sklearn_g2d.training.trainer import Trainer

# What plain PyTorch does, then what the package does on processors without and with bfloat16.
WAYS = {
    "float32, plain": ("float32", torch.contiguous_format),
    "float32, channels last": ("float32", torch.channels_last),
    "bfloat16, channels last": ("bfloat16", torch.channels_last),
}
SETTINGS = WGANSettings(batch_size=64, n_critic=5, gradient_penalty=10.0, learning_rate=1e-4)
IMAGE_SHAPE = (1, 28, 28)


@contextmanager
def layout(memory_format: torch.memory_format) -> Iterator[None]:
    """Let the networks use another memory layout than theirs."""
    modules: tuple[Any, ...] = (images, convolutions, inpainting)
    before = convolutions.LAYOUT
    for module in modules:
        module.LAYOUT = memory_format
    try:
        yield
    finally:
        for module in modules:
            module.LAYOUT = before


def make_gan(way: str, width: int) -> Trainer:
    """Build G2D's GAN of the paper recipe, untrained."""
    X = torch.rand(1000, 28 * 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
    runtime = Runtime.create("cpu", WAYS[way][0], seed=0)
    generator = images.ConvGenerator(
        n_members=1, image_shape=IMAGE_SHAPE, latent_dim=100, width=width, rng=runtime.rng
    )
    critic = images.ConvNetwork(
        n_members=1, image_shape=IMAGE_SHAPE, width=width, n_outputs=1, rng=runtime.rng
    )
    return WGAN(generator, critic, X, SETTINGS, runtime)


def make_avid(way: str) -> Trainer:
    """Build the players of AVID's default recipe, untrained."""
    X = np.random.default_rng(0).normal(size=(50, 154 * 154))
    runtime = Runtime.create("cpu", WAYS[way][0], seed=0)
    # D steps every third time in the recipe; here always, or rounds would not compare.
    recipe = replace(AVID_IMAGE_RECIPES["default"], detector_every=1)
    return ImagePlayers(X, (1, 154, 154), 14, recipe, runtime).game(X, X[:2], recipe, runtime)


def trainers(widths: list[int]) -> dict[str, Callable[[str], Trainer]]:
    """Give what builds each trainer, by name, for a way of computing."""
    gans = {f"G2D, width {width}": partial(make_gan, width=width) for width in widths}
    return gans | {"AVID": make_avid}


def time_steps(name: str, make: Callable[[str], Trainer], rounds: int) -> Iterator[dict]:
    """Seconds of single steps; the first round, which warms up, is left out."""
    made = {}
    for way, (_, memory_format) in WAYS.items():
        with layout(memory_format):
            made[way] = make(way)
    for number in range(rounds + 1):
        for way, (_, memory_format) in WAYS.items():
            with layout(memory_format):
                start = time.perf_counter()
                made[way].step()
                seconds = time.perf_counter() - start
            if number:
                yield {"network": name, "round": number, "way": way, "seconds": seconds}


def detect(digit: int, seed: int) -> Iterator[dict]:
    """AUC of the paper recipe in either precision."""
    digits = load_digits()
    split = split_rows(digits.images[:, np.newaxis], digits.target == digit, seed)
    X_train, X_test, y_test = split
    for precision in ("float32", "bfloat16"):
        detector = G2DOutlierDetector(recipe="paper", precision=precision, random_state=seed)
        scores = detector.fit(X_train).score_samples(X_test)
        auc = outlier_roc_auc_score(y_test, scores)
        yield {"digit": digit, "seed": seed, "precision": precision, "auc": auc}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 64, 128])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--digits", type=int, nargs="+", default=[3, 8])
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    with threadpool_limits(args.threads):
        makers = trainers(args.widths)
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
            "Steps of the paper recipe's GAN on 28 x 28 images, and of AVID's default on 154 x "
            f"154 ({name}, {args.threads} threads, {args.rounds} rounds in which the ways take "
            "turns): median seconds, then how many times faster than plain float32. Width 256 is "
            "the authors'. Last, the AUC of the paper recipe on digits of scikit-learn, 300 "
            "steps, seed 0.",
            "`python -m benchmarks.precision` repeats it.",
        ],
        [seconds, faster, auc],
    )
    print(seconds.to_markdown(floatfmt=".3f"), faster.to_markdown(floatfmt=".2f"), sep="\n\n")
    print(auc.to_markdown(floatfmt=".3f"))


if __name__ == "__main__":
    main()
