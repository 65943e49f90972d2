"""Write the files of the current format: `python tests/saved/make.py`.

Once a version with this format is released they stay as they are, for later versions have to load
them, or say which version does. A new format gets files of its own.
"""

import json
from pathlib import Path

import numpy as np

from sklearn_g2d import AVIDDetector, G2DOutlierDetector
from sklearn_g2d.utils.files import FORMAT

FOLDER = Path(__file__).parent

DETECTORS = (
    (G2DOutlierDetector(max_steps=0, n_estimators=1, latent_dim=2, random_state=0), (24, 2)),
    (
        AVIDDetector(
            region_size=12,
            width=2,
            batch_size=4,
            max_steps=1,
            precision="float32",
            random_state=0,
        ),
        (6, 1, 16, 16),
    ),
)

if __name__ == "__main__":
    for detector, shape in DETECTORS:
        path = FOLDER / f"{type(detector).__name__}_{FORMAT}.safetensors"
        X = np.sin(np.arange(np.prod(shape))).reshape(shape)
        detector.fit(X).save(path)
        expected = {"shape": shape, "score_samples": detector.score_samples(X).tolist()}
        path.with_suffix(".json").write_text(json.dumps(expected) + "\n")
