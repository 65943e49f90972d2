"""
An unlabelled table with mixed columns
======================================

A table arrives: numbers, texts, missing values, and nobody has said which rows are wrong. The
tutorial ranks its rows, asks why the first ones are odd, compares with detectors of PyOD, and ends
with a promised rate of false alarms on new rows. Needs the extra ``pyod``, and pandas.
"""

# %%
# The table
# ---------
# It is made by code, so that you can check at the end what was found. Each row is one reading of a
# pump. Three models of pump turn at their own speeds; flow, pressure and power follow from the
# speed, and the temperature a little from the power. The vibration is skewed. The fluid has
# nothing to do with the other columns. One number in fifty is missing.
#
# One row in twenty is then spoiled, in one of three ways:
#
# - "unit": one number was written down in a wrong unit, ten times too large;
# - "leak": the flow is that of another model's pump, so that it is common by itself, but does not
#   fit the row;
# - "model": the name is that of another model, so that no number is wrong at all.

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from pyod.models.hbos import HBOS
from pyod.models.iforest import IForest
from pyod.models.knn import KNN
from sklearn.compose import ColumnTransformer
from sklearn.frozen import FrozenEstimator
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from sklearn_g2d import ConformalDetector, G2DOutlierDetector
from sklearn_g2d.adapters import FromPyOD
from sklearn_g2d.display import ContributionDisplay
from sklearn_g2d.inspection import column_contributions
from sklearn_g2d.metrics import outlier_average_precision_score, outlier_roc_auc_score

texts = ["model", "fluid"]
numbers = ["speed", "flow", "pressure", "power", "temperature", "vibration"]
speeds = {"P10": 1000, "P20": 1450, "P30": 2900}


def make_readings(n, fraction_odd, seed):
    """Readings, and how each was spoiled ("" of the others)."""
    rng = np.random.default_rng(seed)
    X = pd.DataFrame({"model": rng.choice(list(speeds), n, p=[0.3, 0.4, 0.3])})
    X["fluid"] = rng.choice(["water", "oil", "brine"], n, p=[0.7, 0.2, 0.1])
    X["speed"] = X["model"].map(speeds) * rng.normal(1, 0.08, n)
    X["flow"] = 0.02 * X["speed"] * rng.normal(1, 0.06, n)
    X["pressure"] = 2 + 1e-6 * X["speed"] ** 2 * rng.normal(1, 0.06, n)
    X["power"] = 0.05 * X["flow"] * X["pressure"] * rng.normal(1, 0.05, n)
    X["temperature"] = 35 + 0.5 * X["power"] + rng.normal(0, 3, n)
    X["vibration"] = rng.lognormal(0.5, 0.5, n)

    kinds = np.full(n, "", dtype=object)
    odd = rng.permutation(n)[: round(fraction_odd * n)]
    for kind, rows in zip(["unit", "leak", "model"], np.array_split(odd, 3), strict=True):
        kinds[rows] = kind
        for row in rows:
            model = X.loc[row, "model"]
            other = rng.choice(np.flatnonzero((X["model"] != model) & (kinds == "")))
            if kind == "unit":
                X.loc[row, rng.choice(numbers)] *= 10
            else:
                column = "flow" if kind == "leak" else "model"
                X.loc[row, column] = X.loc[other, column]
    X[numbers] = X[numbers].mask(rng.uniform(size=(n, len(numbers))) < 0.02)
    return X, kinds


X, kinds = make_readings(1000, fraction_odd=0.05, seed=0)
print(X.head().round(2).to_string(), "\n")
print(pd.Series(kinds[kinds != ""]).value_counts().to_string())

# %%
# One Pipeline from table to score
# --------------------------------
# The detector takes numbers only: the transformers fill the gaps, bring the numbers to one scale
# and turn each text into columns of zeros and ones.
#
# ``contamination=0.05`` says that outliers are among the rows. The detector then learns from the
# most central rows, and flags a twentieth of the table. Nothing is held back, and no label is used:
# we want to know which rows of this very table are odd.


def to_numbers():
    return ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), numbers),
            ("texts", OneHotEncoder(handle_unknown="ignore", sparse_output=False), texts),
        ]
    )


pipeline = make_pipeline(to_numbers(), G2DOutlierDetector(contamination=0.05, random_state=0))
pipeline.fit(X)

# %%
# The ten oddest rows
# -------------------
# ``training_scores_`` has a score for each row, lower = more anomalous, by classifiers that did not
# see it. ``column_contributions`` says how much each column of the table adds to the distance from
# a row to its neighbours. The last column, what was done to the row, is the answer that nobody has
# in practice.

oddest = pipeline[-1].training_scores_.argsort()[:10]
why = column_contributions(pipeline, X.iloc[oddest])
largest = why.contributions.argmax(axis=1)
reasons = pd.DataFrame(
    {
        "column": why.names[largest],
        "value": [X[why.names[i]].iloc[row] for i, row in zip(largest, oddest, strict=True)],
        "part": why.contributions.max(axis=1) / why.contributions.sum(axis=1),
        "planted": kinds[oddest],
    },
    index=oddest,
)
print(reasons.round(2).to_string())

# %%
# A wrong unit stands alone: one column explains most of the distance. A value that is common by
# itself, but does not fit its row, is harder to see. This is the oddest row with a leak. Its rare
# fluid adds to the distance, too, which is no fault: an explanation says what is unusual, not what
# is wrong.

leaks = np.flatnonzero(kinds == "leak")
leak = leaks[pipeline[-1].training_scores_[leaks].argmin()]
rank = (pipeline[-1].training_scores_ <= pipeline[-1].training_scores_[leak]).sum()
ContributionDisplay.from_estimator(pipeline, X.iloc[[leak]], name=f"Row {leak}, at rank {rank}")
# Picture: Bars: the flow and the fluid contribute nearly all of the row's distance.
plt.show()

# %%
# Beside detectors of PyOD
# ------------------------
# ``FromPyOD`` gives them scikit-learn's signs and methods, so that they stand at the end of the
# same Pipeline. One table is an anecdote: these are means over five, made with other seeds, and the
# planted labels serve for the judgement only. An average precision by chance is .05.

detectors = {
    "G2D": G2DOutlierDetector(contamination=0.05, random_state=0),
    "G2D, all rows": G2DOutlierDetector(contamination=0.05, support_fraction=1.0, random_state=0),
    "IForest": FromPyOD(IForest(contamination=0.05), random_state=0),
    "HBOS": FromPyOD(HBOS(contamination=0.05)),
    "KNN": FromPyOD(KNN(contamination=0.05)),
}
figures = []
for seed in range(1, 6):
    X_seed, kinds_seed = make_readings(1000, fraction_odd=0.05, seed=seed)
    for name, detector in detectors.items():
        fitted = make_pipeline(to_numbers(), detector).fit(X_seed)
        scores = fitted[-1].training_scores_
        y = np.where(kinds_seed == "", 1, -1)
        figure = {
            "AUC": outlier_roc_auc_score(y, scores),
            "average precision": outlier_average_precision_score(y, scores),
        }
        for kind in ("unit", "leak", "model"):
            rows = (kinds_seed == "") | (kinds_seed == kind)
            figure[f"AUC of {kind}"] = outlier_roc_auc_score(y[rows], scores[rows])
        figures.append({"detector": name, **figure})
means = pd.DataFrame(figures).groupby("detector", sort=False).mean()
print(means.round(3).to_string())

# %%
# KNN has the best AUC. In average precision, which regards the first ranks, G2D is close behind it.
# Both find the wrong units. A leak or a wrong model only breaks a relation between columns, and is
# harder.
#
# G2D learns from six tenths of the rows here, which keeps clusters of outliers out. These tables
# have none, and normal rows that were left out can look odd. "G2D, all rows" learns from every row.
#
# HBOS judges each column by itself, and cannot see a broken relation.

# %%
# A promised rate on new rows
# ---------------------------
# Next week's readings come in. The threshold so far flags a twentieth of *this* table, and promises
# nothing about new rows. If somebody has checked some new rows and found them in order, here 300,
# ``ConformalDetector`` sets a threshold by their scores. It promises that a new normal row is
# flagged with a probability of at most .05. ``FrozenEstimator`` leaves the Pipeline as it is: it
# must not be fitted on these rows.
#
# The promise is a mean over draws of the checked rows. With 300 of them, the rate of one draw is
# often one percentage point off, to either side. It is about clean rows that are like the checked
# ones, and says nothing about how many odd rows are found.

X_checked, _ = make_readings(300, fraction_odd=0, seed=10)
conformal = ConformalDetector(FrozenEstimator(pipeline), false_alarm_rate=0.05).fit(X_checked)

X_clean, _ = make_readings(1500, fraction_odd=0, seed=11)
X_later, kinds_later = make_readings(1500, fraction_odd=0.05, seed=12)
kept, before = (np.mean(model.predict(X_clean) == -1) for model in (conformal, pipeline))
print(f"Clean rows flagged, of at most 5.0 % promised: {kept:.1%}")
print(f"By the Pipeline's own threshold, without a promise: {before:.1%}")
verdicts = conformal.predict(X_later)
for kind in ("unit", "leak", "model"):
    print(f"Flagged of {kind}: {np.mean(verdicts[kinds_later == kind] == -1):.0%}")
