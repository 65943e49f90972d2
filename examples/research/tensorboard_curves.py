"""Losses and validation curves of both detectors in TensorBoard (pip install tensorboard).

python examples/research/tensorboard_curves.py curves
tensorboard --logdir curves
"""

import argparse
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from sklearn_g2d import AVIDDetector, G2DOutlierDetector
from sklearn_g2d.avid import CellInpainting
from sklearn_g2d.g2d import NetworkClassifier
from sklearn_g2d.metrics import outlier_roc_auc_score

try:
    from torch.utils.tensorboard import SummaryWriter
except ImportError:
    raise SystemExit("This example needs TensorBoard: pip install tensorboard") from None


class TensorBoardCurves:
    """Log the losses of every step, and after every n-th step the AUC of validation rows."""

    def __init__(self, folder, X, y, every=10):
        self.folder, self.X, self.y, self.every = folder, X, y, every

    def setup(self, estimator, context):
        """Open the file."""
        self.writer = SummaryWriter(self.folder)

    def on_fit_task_begin(self, estimator, context):
        """Choose what happens at the end of this step."""
        # scikit-learn makes a fitted estimator whenever the hook's signature asks for one, which
        # takes longer than a step. So another hook stands in for it at the other steps.
        vars(self).pop("on_fit_task_end", None)
        if (context.task_id + 1) % self.every:
            self.on_fit_task_end = self.log_losses

    def log_losses(self, estimator, context, *, metadata=None):
        """Log the losses of a step."""
        for name in (metadata or {}).keys() - {"step"}:
            tag = f"{context.parent.task_name}/{name}"
            self.writer.add_scalar(tag, metadata[name], metadata["step"])

    def on_fit_task_end(self, estimator, context, *, metadata=None, fitted_estimator=None):
        """Log the losses of a step, and how well the detector works after it."""
        self.log_losses(estimator, context, metadata=metadata)
        stage = context.parent.task_name if context.task_name == "step" else None
        if stage in ("classifier", "networks"):  # the generator alone cannot score
            auc = outlier_roc_auc_score(self.y, fitted_estimator.score_samples(self.X))
            self.writer.add_scalar(f"{stage}/validation AUC", auc, metadata["step"])

    def teardown(self, estimator, context):
        """Close the file."""
        self.writer.close()


def main(folder, n_steps):
    """Train both detectors on all digits but 9."""
    X, digit = load_digits(return_X_y=True)
    y = np.where(digit == 9, -1, 1)
    train, validation = np.flatnonzero(y[:900] == 1), slice(900, None)
    for name, detector in {
        "G2D": G2DOutlierDetector(classifier=NetworkClassifier(max_steps=n_steps)),
        "AVID": AVIDDetector(training=CellInpainting(max_steps=n_steps)),
    }.items():
        curves = TensorBoardCurves(folder / name, X[validation], y[validation])
        detector.set_params(random_state=0).set_callbacks(curves).fit(X[train])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("curves"))
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    main(arguments.folder, arguments.steps)
