"""What one process does in tests/test_parallel.py: `torchrun together.py FOLDER`."""

import contextlib
import io
import json
import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.callback import ProgressBar
from sklearn.linear_model import LogisticRegression
from torch import distributed

from sklearn_g2d import AVIDDetector, G2DOutlierDetector
from sklearn_g2d.avid import CellInpainting, MaskedInpainting, PatchNet, UNet
from sklearn_g2d.callbacks import Checkpoint
from sklearn_g2d.g2d import ConvGenerator, ConvNetwork, WassersteinGAN
from sklearn_g2d.training import parallel
from sklearn_g2d.training.runtime import Runtime

SMALL = {"inpainter": UNet(channels=2), "detector": PatchNet(channels=2), "region_size": 12}
TRAINED = {
    "G2D on a table": G2DOutlierDetector(
        generator=WassersteinGAN(max_steps=20), contamination=0.105
    ),
    "G2D by default": G2DOutlierDetector(),
    "G2D on features of images": G2DOutlierDetector(generator=WassersteinGAN(max_steps=5)),
    "G2D as published": G2DOutlierDetector.from_paper(
        data="images",
        generator__max_steps=6,
        generator__generator_network=ConvGenerator(channels=2),
        generator__critic_network=ConvNetwork(channels=2),
        classifier__network=ConvNetwork(channels=2),
    ),
    "AVID on a table": AVIDDetector(training=CellInpainting(max_steps=10)),
    "AVID on images": AVIDDetector(training=MaskedInpainting(max_steps=6), **SMALL),
    "AVID as published": AVIDDetector.from_paper(data="images", training__max_steps=6, **SMALL),
    "G2D on some of many rows": G2DOutlierDetector(),
}


def make_data(name):
    """Rows or images, the same in every process."""
    rng = np.random.default_rng(0)
    if "images" in name or "published" in name:
        return rng.normal(size=(25, 1, 16, 16)) + np.arange(16) % 4
    return rng.normal(size=(12_001 if "many" in name else 301, 3)) @ rng.normal(size=(3, 3))


class StopAfter:
    """Stops training after so many steps."""

    def __init__(self, n_steps):
        self.n_steps = n_steps

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context, *, metadata=None):
        return context.task_name == "step" and metadata["step"] == self.n_steps


def message_of(detector, X):
    """What `fit` raises."""
    try:
        detector.fit(X)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def main(folder):
    rank, n = distributed.get_rank(), distributed.get_world_size()
    for name, detector in TRAINED.items():
        # Processes that are seeded by themselves have nothing in common to begin with.
        detector.set_callbacks(StopAfter(20)).fit(make_data(name)[rank::n]).save(
            folder / f"{name}, {rank}"
        )

    shard = make_data("table")[rank::n]
    facts = {}
    numbers = torch.arange(4.0).view(2, 2).T + 10 * rank  # laid out column by column
    parallel.average([numbers, torch.zeros(3)])
    facts["averaged"] = numbers.tolist()
    runtime = Runtime.create("cpu", "float32", seed=0)
    facts["drawn"] = torch.rand(2, generator=runtime.of_process().rng).tolist()
    facts["drawn by all"] = torch.rand(2, generator=runtime.rng).tolist()

    with contextlib.redirect_stdout(io.StringIO()) as out:
        gan = WassersteinGAN(max_steps=5)
        shown = G2DOutlierDetector(generator=gan, classifier=LogisticRegression())
        shown.set_callbacks(ProgressBar()).fit(shard)
    facts["shown"] = out.getvalue()
    facts["callbacks kept"] = len(shown._skl_callbacks)
    # All processes stop where the first one is told to, whatever the others' callbacks say.
    stopped = G2DOutlierDetector().set_callbacks(StopAfter(7 + rank)).fit(shard)
    facts["stopped after"] = len(stopped.history_["classifier_loss"])

    odd = shard.copy()
    odd[:, 0] = np.nan if rank == 1 else odd[:, 0]
    facts["NaN in one"] = message_of(G2DOutlierDetector(), odd)
    facts["fewer columns in one"] = message_of(AVIDDetector(), shard[:, rank:])
    kept = G2DOutlierDetector().set_callbacks(Checkpoint(folder / f"checkpoint {rank}"))
    facts["checkpoint"] = message_of(kept, shard)
    (folder / f"facts {rank}").write_text(json.dumps(facts))


if __name__ == "__main__":
    distributed.init_process_group("gloo")
    main(Path(sys.argv[1]))
    distributed.destroy_process_group()
