"""What does a GPU give? A training step against a bare loop's, AVID's default fit, images a second.

Without a GPU it says so, and writes a page that says so unless there are figures.

    python -m benchmarks.gpu
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from benchmarks.bare_loops import Step, descend
from benchmarks.images import G2D_AS_AUTHORS
from benchmarks.maps import AVID_FOR_GPUS, avid_detectors
from benchmarks.overhead import block, trainer_of
from benchmarks.report import mark_best, write_markdown
from sklearn_g2d import AVIDDetector
from sklearn_g2d.avid import MaskedInpainting
from sklearn_g2d.features import PretrainedFeatures
from sklearn_g2d.training import cuda_arithmetic
from sklearn_g2d.training.runtime import arithmetic_of

N_IMAGES, SIDE, STEPS = 400, 128, 60
COMMAND = "`python -m benchmarks.gpu`"
avid_for_gpus: Callable[[int], Any] = avid_detectors("images")[AVID_FOR_GPUS]


def make_images() -> NDArray[np.uint8]:
    """Draw gray images of stripes in noise."""
    noise = np.random.default_rng(0).integers(0, 100, (N_IMAGES, 1, SIDE, SIDE))
    return (noise + 20 * (np.arange(SIDE) % 8)).astype(np.uint8)


def bare_step(trainer: Any) -> Step:
    """Give a step of copies of AVID's networks, with nothing of the package around them."""
    X, device = trainer.samples.X, trainer.runtime.device
    n, (height, width), block = trainer.batch_size, trainer.samples.size, trainer.samples.blocks[-1]
    inpainter, detector = (
        copy.deepcopy(network).to(device).train()
        for network in (trainer.inpainter, trainer.detector)
    )
    averages = [
        [(p.detach().clone(), p) for p in network.parameters()] for network in (inpainter, detector)
    ]
    of_inpainter, of_detector = (
        torch.optim.Adam(network.parameters(), 3e-3, betas=(0.9, 0.99), fused=True)
        for network in (inpainter, detector)
    )
    n_taken = 0

    def draw(n_crops: int) -> torch.Tensor:
        return X[torch.randint(len(X), (n_crops,), device=device), :, :height, :width]

    def mask(fraction: float) -> torch.Tensor:
        cells = torch.rand(n, 1, height // block + 1, width // block + 1, device=device) < fraction
        pixels = cells.float().repeat_interleave(block, 2).repeat_interleave(block, 3)
        return pixels[:, :, :height, :width]

    def step() -> torch.Tensor:
        nonlocal n_taken
        x, hidden = draw(n), mask(0.5)
        inpainted = torch.where(hidden > 0, inpainter(x, hidden), x)
        error = (inpainted - x).square().sum() / (x.numel() * hidden.mean()).clamp(min=1)
        descend(of_inpainter, error)
        if n_taken % 3 == 0:
            real, other = draw(2 * n).split(n)
            after = torch.where(mask(0.3) > 0, other, real)
            logits = detector(torch.cat([real, after]))
            change = (after - real).square().mean(1, keepdim=True)
            labels = torch.zeros_like(logits)
            labels[n:] = F.adaptive_avg_pool2d(change, logits.shape[2:]) > change.mean() / 4
            descend(of_detector, F.binary_cross_entropy_with_logits(logits, labels))
        for pairs in averages:
            kept, now = map(list, zip(*pairs, strict=True))
            torch._foreach_lerp_(kept, [p.detach() for p in now], 0.01)
        n_taken += 1
        return error.detach()

    return step


def wide_steps(
    settings: dict[str, Any], X: NDArray, n_steps: int
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Give what takes steps of networks as wide as the authors' ones, by name."""
    g2d, avid = G2D_AS_AUTHORS(**settings), avid_for_gpus(0).set_params(**settings)
    for name, trainer in {
        "G2D's GAN, 256 channels, 64 crops of 32 x 32": trainer_of(
            g2d, "generator", X[:, :, :32, :32]
        ),
        "AVID, 64 to 512 channels, 16 whole images": trainer_of(avid, "networks", X),
    }.items():
        yield name, block(trainer, n_steps)


def measures(
    device: str, n_rounds: int, max_steps: int, n_wide: int
) -> Iterator[tuple[str, float]]:
    """Give figures by name; `n_wide` is the number of steps of the authors' widths."""
    X, place = make_images(), torch.device(device)

    def seconds(work: Callable[[], object]) -> float:
        times = []
        for _ in range(n_rounds + 1):
            start = time.perf_counter()
            work()
            if place.type == "cuda":
                torch.cuda.synchronize(place)
            times.append(time.perf_counter() - start)
        return float(np.median(times[1:]))  # the first one warms up

    settings: dict[str, Any] = {"device": device, "precision": "float32", "random_state": 0}
    trainer = trainer_of(AVIDDetector(**settings), "networks", X)
    bare = bare_step(trainer)
    with arithmetic_of(place):
        by_package = seconds(lambda: [trainer.step() for _ in range(STEPS)]) / STEPS
        by_bare = seconds(lambda: [bare() for _ in range(STEPS)]) / STEPS
    yield "milliseconds of a step of AVID", 1000 * by_package
    yield "milliseconds of a bare step", 1000 * by_bare
    yield "step of AVID over bare step", by_package / by_bare
    for name, steps in wide_steps(settings, X, n_wide) if n_wide else []:
        for tf32 in (False, True):
            with cuda_arithmetic(tf32=tf32, deterministic=not tf32), arithmetic_of(place):
                took = seconds(steps) / n_wide
            mode = ", TF32, not deterministic" if tf32 else ""
            yield f"milliseconds of a step of {name}{mode}", 1000 * took
    training = MaskedInpainting(max_steps=max_steps)
    start = time.perf_counter()
    fitted = AVIDDetector(**settings, training=training).fit(X)
    if max_steps > 1:
        yield f"seconds of a fit of AVID, {max_steps} steps", time.perf_counter() - start
    yield "images scored in a second", N_IMAGES / seconds(lambda: fitted.score_samples(X))
    features = PretrainedFeatures(device=device).fit(X)
    yield (
        "images whose features are computed in a second",
        N_IMAGES / seconds(lambda: features.transform(X)),
    )


def write_page(folder: Path, results: pd.DataFrame | None) -> None:
    """Write the page of figures, or that there are none."""
    told = (
        f"Five things are timed on {N_IMAGES} gray images of {SIDE} x {SIDE} pixels: a training "
        "step of `AVIDDetector`, a step of the same networks in a bare loop of PyTorch, a whole "
        "fit, `score_samples`, and `PretrainedFeatures().transform`. All is in float32, where "
        '`precision="auto"` would take bfloat16 if the device multiplies in it. TF32 is off, '
        "except where a row names it."
    )
    if results is None:
        paragraphs = [
            "**Not measured yet**, because no machine with a GPU was at hand. Where there is one, "
            f"{COMMAND} writes this page. {told}"
        ]
        write_markdown(folder / "gpu.md", "What a GPU gives", paragraphs, [])
        return
    facts = results.iloc[0]
    named = ", ".join(f"{name} {facts[name]}" for name in ("card", "torch", "cuda"))
    paragraphs = [
        f"{told} The steps with more channels are those of the published methods, as wide as "
        "[their authors had them](../reproducing.md); G2D keeps a snapshot every third step, which "
        f"is part of its time. Figures of the GPU are medians ({named}), those of the CPU of the "
        f"same machine, {facts['cores']} threads, single times.",
        f"{COMMAND} repeats it.",
    ]
    table = mark_best(results[["GPU", "CPU"]], [], [])
    write_markdown(folder / "gpu.md", "What a GPU gives", paragraphs, [table])


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    if not torch.cuda.is_available():
        if not (args.output / "gpu.csv").exists():
            write_page(args.output, None)
        raise SystemExit(
            "benchmarks.gpu needs a GPU with CUDA, and torch.cuda.is_available() is False: run it "
            "on a machine that has one, with a build of PyTorch for it."
        )
    columns: dict[str, dict[str, float]] = {"GPU": {}, "CPU": {}}
    runs = {
        "GPU": measures("cuda", args.rounds, MaskedInpainting().max_steps, n_wide=10),
        "CPU": measures("cpu", 1, max_steps=1, n_wide=0),
    }
    for column, figures in runs.items():
        for what, value in figures:
            columns[column][what] = value
            print(f"{column}, {what}: {value:.4g}", flush=True)
    results = pd.DataFrame(columns).rename_axis("what")
    results["card"], results["cores"] = torch.cuda.get_device_name(), torch.get_num_threads()
    results["torch"], results["cuda"] = torch.__version__, torch.version.cuda
    results.to_csv(args.output / "gpu.csv", float_format="%.5g")
    write_page(args.output, results)
    print(results.to_markdown(floatfmt=".3f"))


if __name__ == "__main__":
    main()
