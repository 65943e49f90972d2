"""
Any classifier as the detector
==============================

Once outliers have been generated, the detector has to tell two classes apart, which any classifier
of scikit-learn can do. Each draws another boundary.
"""

# %%
# Four classifiers, same outliers
# -------------------------------
# ``classifier=None`` is a ``NetworkClassifier``. The others need ``predict_proba``. In the first
# line all see the distances of a row to the nearest normal rows. ``n_neighbors=0`` in the second
# line shows them the row itself, so that they have to draw a boundary around the data.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import make_moons
from sklearn.ensemble import RandomForestClassifier
from sklearn.inspection import DecisionBoundaryDisplay
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from sklearn_g2d import G2DOutlierDetector
from sklearn_g2d.metrics import outlier_roc_auc_score

X, _ = make_moons(600, noise=0.06, random_state=0)
X_train, X_test = X[::2], X[1::2]
outliers = np.random.default_rng(0).uniform([-2, -1.5], [3, 2], size=(300, 2))
X_new = np.concatenate([X_test, outliers])
y_new = np.repeat([1, -1], 300)

classifiers = {
    "network (default)": None,
    "logistic regression": LogisticRegression(),
    "random forest": RandomForestClassifier(min_samples_leaf=5),
    "neighbours": KNeighborsClassifier(25),
}
_, axes = plt.subplots(2, 4, figsize=(12, 5), sharex=True, sharey=True, layout="constrained")
for row, n_neighbors in zip(axes, (20, 0), strict=True):
    for ax, (name, classifier) in zip(row, classifiers.items(), strict=True):
        detector = G2DOutlierDetector(
            classifier=classifier, n_neighbors=n_neighbors, random_state=0
        ).fit(X_train)
        auc = outlier_roc_auc_score(y_new, detector.decision_function(X_new))
        DecisionBoundaryDisplay.from_estimator(
            detector, X_new, response_method="predict", cmap="Greys_r", alpha=0.4, ax=ax, eps=0.1
        )
        ax.scatter(*outliers.T, s=3, color="tab:red", label="outliers")
        ax.scatter(*X_test.T, s=3, color="tab:blue", label="normal rows")
        ax.set(title=f"{name}\nAUC {auc:.3f}", xticks=[], yticks=[])
    row[0].set_ylabel(f"n_neighbors={n_neighbors}")
axes[0, 0].legend(markerscale=3, loc="upper right")
# Picture: Boundaries of four classifiers around two moons, with neighbour distances and without.
plt.show()

# %%
# White is the region that ``predict`` calls normal; no outlier in the picture was seen in training.
#
# All scores have one unit, the log-odds of normal against generated, and all thresholds come from
# scores of rows that a classifier was not trained on: ``offset_`` and ``p_values`` work with every
# classifier. The forest has no seed of its own and is given one by the detector.
