"""Write the files of the current format: `python tests/saved/make.py`.

Once a version with this format is released they stay as they are, for later versions have to load
them, or say which version does. A new format gets files of its own.
"""

import json
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_g2d import AVIDDetector, G2DOutlierDetector
from sklearn_g2d.avid import MaskedInpainting, PatchNet, UNet
from sklearn_g2d.g2d import NetworkClassifier, WassersteinGAN
from sklearn_g2d.persistence import FORMAT, save

FOLDER = Path(__file__).parent

CLASSIFIER = NetworkClassifier(hidden_layer_sizes=(4,), n_members=2, max_steps=5)
GENERATOR = WassersteinGAN(max_steps=2, n_members=1, latent_dim=2, hidden_layer_sizes=(4,))

ESTIMATORS = {
    "G2DOutlierDetector": (G2DOutlierDetector(classifier=CLASSIFIER, random_state=0), (24, 2)),
    "G2DOutlierDetector-gan": (
        G2DOutlierDetector(generator=GENERATOR, classifier=CLASSIFIER, random_state=0),
        (24, 2),
    ),
    "AVIDDetector": (
        AVIDDetector(
            region_size=12,
            training=MaskedInpainting(max_steps=1, batch_size=4),
            inpainter=UNet(channels=2),
            detector=PatchNet(channels=2),
            precision="float32",
            random_state=0,
        ),
        (6, 1, 16, 16),
    ),
    "Pipeline": (
        make_pipeline(
            StandardScaler(), G2DOutlierDetector(classifier=LogisticRegression(), random_state=0)
        ),
        (24, 2),
    ),
}

if __name__ == "__main__":
    for name, (estimator, shape) in ESTIMATORS.items():
        path = FOLDER / f"{name}_{FORMAT}.skops"
        X = np.sin(np.arange(np.prod(shape))).reshape(shape)
        save(estimator.fit(X), path)
        expected = {"shape": shape, "score_samples": estimator.score_samples(X).tolist()}
        path.with_suffix(".json").write_text(json.dumps(expected) + "\n")
