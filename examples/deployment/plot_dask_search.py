"""
A search on several machines
============================

scikit-learn fits the candidates of a search through joblib, which hands them to dask where it is
told so. The same lines serve a laptop and a cluster. Needs the extra ``dask``.
"""

# %%
# Two workers
# -----------
# Here the workers are threads of this process. On a cluster, pass the address of its scheduler to
# ``Client`` instead, and nothing else changes.

import joblib
import matplotlib.pyplot as plt
import numpy as np
from distributed import Client, LocalCluster, get_task_stream
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import GridSearchCV

from sklearn_g2d import G2DOutlierDetector
from sklearn_g2d.g2d import NetworkClassifier
from sklearn_g2d.metrics import SCORERS
from sklearn_g2d.model_selection import NormalOnlySplit

X, y = load_breast_cancer(return_X_y=True)
y = np.where(y == 1, 1, -1)  # benign is normal

search = GridSearchCV(
    G2DOutlierDetector(classifier=NetworkClassifier(n_members=4), random_state=0),
    {"n_neighbors": [5, 20], "n_generated": [1.0, 2.0]},
    cv=NormalOnlySplit(3),
    scoring=SCORERS["outlier_roc_auc"],
    refit=False,
)
workers = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": ":0"}
with (
    LocalCluster(**workers) as cluster,
    Client(cluster) as client,
    get_task_stream(client) as stream,
    joblib.parallel_config("dask"),
):
    search.fit(X, y)
print(search.best_params_, f"AUC {search.best_score_:.3f}")

# %%
# Who did what
# ------------
# Each bar is one candidate's fit on one fold. Seeds belong to the detector, so that the AUC are
# those of a search without dask.

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.5), layout="constrained")
start = min(span["start"] for task in stream.data for span in task["startstops"])
names = sorted({task["worker"] for task in stream.data})
for task in stream.data:
    for span in task["startstops"]:
        if span["action"] == "compute":
            row, seconds = names.index(task["worker"]), span["stop"] - span["start"]
            left.barh(row, seconds, left=span["start"] - start, color="tab:blue", edgecolor="white")
left.set(yticks=range(len(names)), yticklabels=[f"worker {i + 1}" for i in range(len(names))])
left.set(xlabel="seconds", title=f"{len(stream.data)} fits")

results = search.cv_results_
labels = [", ".join(f"{k}={v}" for k, v in params.items()) for params in results["params"]]
scores = results["mean_test_score"], results["std_test_score"]
right.errorbar(scores[0], labels, xerr=scores[1], fmt="o", color="tab:blue")
right.set(xlabel="AUC, mean and deviation of the folds", title="Candidates")
right.margins(y=0.2)
# Picture: The fits of two workers over time; mean and deviation of the AUC of each candidate.
plt.show()
