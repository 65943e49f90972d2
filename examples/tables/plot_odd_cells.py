"""
Which cell of a row is odd?
===========================

On a table, ``AVIDDetector`` judges each cell by the rest of its row. It finds values that are
common in their column but do not fit their row, such as a mistyped or exchanged entry.
"""

# %%
# One wrong cell in each row
# --------------------------
# Ten measurements of tumours. In each test row one cell gets a low or a high value of its column,
# whichever is further away: neither is unusual by itself.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

from sklearn_g2d import AVIDDetector
from sklearn_g2d.display import AnomalyMapDisplay

X = load_breast_cancer(as_frame=True).data.filter(like="mean ")
X = X.rename(columns=lambda name: name.removeprefix("mean "))
X_train, X_test = train_test_split(X, test_size=0.4, random_state=0)

rng = np.random.default_rng(0)
low, high = X_train.quantile([0.1, 0.9]).to_numpy()
further = np.where(X_test - low > high - X_test, low, high)
is_wrong = np.zeros(X_test.shape, dtype=bool)
is_wrong[np.arange(len(X_test)), rng.integers(X_test.shape[1], size=len(X_test))] = True
X_wrong = X_test.mask(is_wrong, further)

# %%
# The map of a table
# ------------------
# Rows by features, higher = more anomalous. Where the red frame, the most anomalous cell of a row,
# lies on the blue one, the wrong cell is found.

detector = AVIDDetector(random_state=0).fit(X_train)
maps = detector.anomaly_map(X_wrong)
is_highest = maps == maps.max(axis=1, keepdims=True)
shown = slice(20)
AnomalyMapDisplay.from_predictions(
    X_wrong[shown],
    maps[shown],
    predicted_masks=is_highest[shown],
    masks=is_wrong[shown],
    value_range=(0, np.quantile(maps, 0.95)),
    name="One wrong cell each",
)
# Picture: Anomaly of each cell of 20 rows, with frames around true and predicted wrong cells.
plt.show()

# %%
# How often it is right
# ---------------------
# A measurement that follows from others, as an area follows from a radius, can be checked; a
# measurement that is independent of the others cannot.

print(f"The wrong cell is found in {np.mean(is_highest[is_wrong]):.0%} of {len(maps)} rows.")

aucs = [roc_auc_score(is_wrong[:, i], maps[:, i]) for i in range(X.shape[1])]
order = np.argsort(aucs)
_, ax = plt.subplots(figsize=(7, 3.5), layout="constrained")
ax.barh(X.columns[order], np.take(aucs, order), color="tab:blue")
ax.axvline(0.5, color="black", linestyle="--", label="by chance")
ax.set(xlim=(0, 1), xlabel="AUC of finding the wrong cells of a column")
ax.set_title("Which columns can be checked")
ax.legend(loc="lower right")
# Picture: Bars: for each column, how well its wrong cells are found.
plt.show()
