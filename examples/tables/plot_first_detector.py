"""
A first detector
================

Learn benign tumours, find malignant ones: the detector sees normal rows only, and is used like
``IsolationForest``.
"""

# %%
# Ten lines
# ---------
# Half of the benign rows are for training. The other half and all malignant rows, which the
# detector has never seen, are for testing. As everywhere in scikit-learn, +1 is an inlier and -1
# an outlier.

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

from sklearn_g2d import G2DOutlierDetector

X, y = load_breast_cancer(return_X_y=True)
benign, malignant = X[y == 1], X[y == 0]
X_train, X_benign = train_test_split(benign, test_size=0.5, random_state=0)
X_test = np.concatenate([X_benign, malignant])
y_test = np.repeat([1, -1], [len(X_benign), len(malignant)])

detector = G2DOutlierDetector(random_state=0).fit(X_train)
flagged = detector.predict(X_test) == -1

# %%
# What it found
# -------------
# The threshold, which no outlier has had a part in, is set so that about one new normal row in
# twenty is flagged.

print(f"benign rows flagged:    {flagged[y_test == 1].mean():.1%}")
print(f"malignant rows flagged: {flagged[y_test == -1].mean():.1%}")

# %%
# The displays draw what the numbers say: how the rows are scored, and what other thresholds would
# give.

import matplotlib.pyplot as plt

from sklearn_g2d.display import OutlierRocCurveDisplay, ScoreDistributionDisplay

_, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
ScoreDistributionDisplay.from_estimator(detector, X_test, y_test, name="New tumours", ax=left)
OutlierRocCurveDisplay.from_estimator(detector, X_test, y_test, ax=right)
right.set_title("Detection against false alarms")
# Picture: Scores of malignant tumours lie mostly below the threshold; the ROC curve is steep.
plt.show()
