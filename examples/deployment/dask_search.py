"""Search settings on several machines, or here on two processes in their place.

    python examples/deployment/dask_search.py                # two processes of this machine
    python examples/deployment/dask_search.py --scheduler tcp://host:8786  # a cluster

Every candidate is fitted on every split by whichever worker is free; the scores are those of a
search on one machine.
"""

from __future__ import annotations

import argparse

import joblib
import numpy as np
from dask.distributed import Client, LocalCluster
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import GridSearchCV

from sklearn_g2d import G2DOutlierDetector
from sklearn_g2d.metrics import SCORERS
from sklearn_g2d.model_selection import NormalOnlySplit


def make_search() -> GridSearchCV:
    """Search over a parameter of the detector and one of its classifier."""
    return GridSearchCV(
        G2DOutlierDetector(random_state=0),
        {"n_neighbors": [5, 20], "classifier__n_members": [4, 8]},
        cv=NormalOnlySplit(3),
        scoring=SCORERS["outlier_roc_auc"],
        refit=False,
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scheduler", help="address of a cluster; none starts two processes")
    args = parser.parse_args()
    X, malignant_or_benign = load_breast_cancer(return_X_y=True)
    y = np.where(malignant_or_benign == 1, 1, -1)
    cluster = args.scheduler or LocalCluster(n_workers=2, threads_per_worker=1)
    with Client(cluster), joblib.parallel_config("dask", scatter=[X]):
        search = make_search().fit(X, y)
    results = search.cv_results_
    for params, auc in zip(results["params"], results["mean_test_score"], strict=True):
        print(f"{params}: AUC {auc:.4f}")
    if not args.scheduler:
        cluster.close()


if __name__ == "__main__":  # the workers import this file
    main()
