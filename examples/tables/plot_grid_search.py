"""
Choosing parameters honestly
============================

A detector must not be trained on outliers, but some are needed to compare parameters.
``NormalOnlySplit`` removes them from the training folds and leaves them in the test folds.
"""

# %%
# What the splitter does
# ----------------------
# For a detector, an integer ``cv`` means scikit-learn's ``KFold``. Then most of the outliers are
# in the training folds, and count as normal. Each line below is a fold.

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch
from sklearn.base import clone
from sklearn.datasets import load_wine
from sklearn.model_selection import GridSearchCV, KFold, train_test_split

from sklearn_g2d import G2DOutlierDetector
from sklearn_g2d.display import OutlierRocCurveDisplay
from sklearn_g2d.g2d import GaussianCloud, WassersteinGAN
from sklearn_g2d.metrics import SCORERS
from sklearn_g2d.model_selection import NormalOnlySplit

X, cultivar = load_wine(return_X_y=True)
y = np.where(cultivar == 1, 1, -1)  # the second cultivar is normal
X, X_test, y, y_test = train_test_split(X, y, test_size=0.5, stratify=y, random_state=0)

figure, axes = plt.subplots(2, 1, figsize=(8, 4), sharex=True, layout="constrained")
colors = {"left out": "white", "training": "tab:blue", "test": "lightsteelblue"}
for ax, splitter in zip(axes, [KFold(5), NormalOnlySplit(5)], strict=True):
    use = np.zeros((5, len(X)))
    for fold, (train, test) in zip(use, splitter.split(X, y), strict=True):
        fold[train], fold[test] = 1, 2
    rows = np.argsort(-y, kind="stable")
    ax.imshow(use[:, rows], ListedColormap(list(colors.values())), aspect="auto", vmin=0, vmax=2)
    ax.axvline(np.sum(y == 1) - 0.5, color="tab:red")
    ax.set(title=type(splitter).__name__, ylabel="fold", yticks=range(5))
axes[1].set_xlabel("row: normal ones left of the red line, outliers right of it")
keys = [Patch(facecolor=color, edgecolor="gray", label=name) for name, color in colors.items()]
figure.legend(handles=keys, loc="outside right upper")
# Picture: KFold trains on outliers in every fold; NormalOnlySplit trains on normal rows only.
plt.show()

# %%
# The search
# ----------
# A grid may hold parameters, parameters of parts (``classifier__n_members``) and whole parts. The
# scorer takes outliers as the positive class. ``refit=True`` would fit the best candidate to all
# rows, outliers included, and no splitter can prevent that. So it is fitted to the normal rows
# afterwards.

names = {
    GaussianCloud(spread=1.0): "narrow cloud",
    GaussianCloud(spread=2.0): "wide cloud",
    WassersteinGAN(max_steps=150, n_members=4): "trained",
}
search = GridSearchCV(
    G2DOutlierDetector(random_state=0).set_params(classifier__n_members=4),
    {"n_neighbors": [0, 5, 20], "generator": list(names)},
    cv=NormalOnlySplit(5),
    scoring=SCORERS["outlier_roc_auc"],
    refit=False,
).fit(X, y)
best = clone(search.estimator).set_params(**search.best_params_).fit(X[y == 1])
print(search.best_params_)

# %%
# The held-out half of the data, which the search has not seen, shows how well the best candidate
# detects.

results = pd.DataFrame(search.cv_results_["params"]).replace({"generator": names})
results["auc"] = search.cv_results_["mean_test_score"]
aucs = results.pivot(index="n_neighbors", columns="generator", values="auc")
_, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
left.imshow(aucs, cmap="YlGn", alpha=0.7, aspect="auto")
for (row, column), auc in np.ndenumerate(aucs):
    left.text(column, row, f"{auc:.3f}", ha="center", va="center")
left.set(xlabel="generator", ylabel="n_neighbors", title="Mean AUC of five folds")
left.set_xticks(range(aucs.shape[1]), aucs.columns)
left.set_yticks(range(aucs.shape[0]), aucs.index)
OutlierRocCurveDisplay.from_estimator(best, X_test, y_test, name="best", ax=right)
right.set_title("New rows")
# Picture: AUC of each candidate as a coloured table, and the ROC curve of the best one.
plt.show()
