"""
Beside PyOD's detectors, in two dimensions
==========================================

The picture known from scikit-learn's comparison of outlier detectors, here for novelties: each
detector learns from normal rows only, and is drawn with the region that it takes for normal. Needs
the extra ``benchmarks``.
"""

# %%
# Four shapes of normal data
# --------------------------
# Half of the normal rows are for training, half for testing. Outliers are spread evenly over the
# square. Some of them fall among the normal rows, where nothing tells them apart, so that even a
# perfect detector stays below an AUC of 1.

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from pyod.models.auto_encoder import AutoEncoder
from pyod.models.iforest import IForest
from pyod.models.knn import KNN
from pyod.models.lof import LOF
from pyod.models.ocsvm import OCSVM
from sklearn.datasets import make_blobs, make_circles, make_moons

from sklearn_g2d import G2DOutlierDetector
from sklearn_g2d.metrics import outlier_roc_auc_score

n, side = 600, 6.0
rng = np.random.default_rng(0)
turns = 2 * np.pi * rng.uniform(0.5, 2.2, size=n)
spiral = 0.4 * turns * [np.cos(turns), np.sin(turns)]
centers, deviations = [(-3, -3), (2, 2)], [0.3, 1.2]
shapes = {
    "blobs": make_blobs(n, centers=centers, cluster_std=deviations, random_state=0)[0],
    "moons": 2.8 * make_moons(n, noise=0.06, random_state=0)[0] - [1.4, 0.7],
    "rings": 5 * make_circles(n, factor=0.4, noise=0.04, random_state=0)[0],
    "spiral": spiral.T + rng.normal(scale=0.15, size=(n, 2)),
}
outliers = rng.uniform(-side, side, size=(n // 2, 2))
y_test = np.repeat([1, -1], n // 2)

# %%
# Two signs
# ---------
# PyOD's scores are higher for outliers, scikit-learn's and ours are lower. Here all give what
# scikit-learn calls ``decision_function``: negative beyond the threshold, by which each detector
# flags a twentieth of its training rows.

settings = {"contamination": 0.05}
detectors = {
    "G2D": G2DOutlierDetector(random_state=0, **settings),
    "KNN": KNN(**settings),
    "LOF": LOF(novelty=True, **settings),
    "IForest": IForest(random_state=0, **settings),
    "OCSVM": OCSVM(**settings),
    "AutoEncoder": AutoEncoder(random_state=0, verbose=0, **settings),
}


def normality(detector, X):
    """Higher = more normal, 0 at the threshold."""
    if isinstance(detector, G2DOutlierDetector):
        return detector.decision_function(X)
    return detector.threshold_ - detector.decision_function(X)


# %%
# The picture
# -----------
# White is normal, the darker the less so, and the black line is the threshold. Blue rows are
# normal, red ones outliers, none of them seen in training.

grid = np.meshgrid(*[np.linspace(-side, side, 100)] * 2)
figure, axes = plt.subplots(4, 6, figsize=(12, 9.2), layout="constrained")
aucs = pd.DataFrame(index=shapes, columns=detectors, dtype=float)
for row, (shape, X) in zip(axes, shapes.items(), strict=True):
    X_train, X_test = X[::2], np.concatenate([X[1::2], outliers])
    for ax, (name, detector) in zip(row, detectors.items(), strict=True):
        detector.fit(X_train)
        aucs.loc[shape, name] = outlier_roc_auc_score(y_test, normality(detector, X_test))
        response = normality(detector, np.column_stack([g.ravel() for g in grid]))
        response = response.reshape(grid[0].shape)
        levels = np.linspace(response.min(), 0, 8)
        ax.contourf(*grid, response, levels=levels, cmap="Greys_r", alpha=0.6)
        ax.contour(*grid, response, levels=[0], colors="black")
        for label, color in ((1, "tab:blue"), (-1, "tab:red")):
            ax.scatter(*X_test[y_test == label].T, s=2, color=color)
        ax.set(aspect="equal", xticks=[], yticks=[], title=f"AUC {aucs.loc[shape, name]:.3f}")
    row[0].set_ylabel(shape, fontsize="large")
for ax, name in zip(axes[0], detectors, strict=True):
    ax.set_title(f"{name}\n{ax.get_title()}")
# Picture: Boundaries of six detectors around blobs, moons, rings and a spiral, each with its AUC.
plt.show()

# %%
# The same as a table, best last:

aucs.T.assign(mean=aucs.mean()).sort_values("mean").round(3)
