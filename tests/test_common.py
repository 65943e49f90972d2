"""scikit-learn's own checks of what an estimator is, none of them expected to fail."""

import os
import subprocess
import sys

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from sklearn_g2d import AVIDDetector, G2DOutlierDetector
from sklearn_g2d.avid import CellInpainting
from sklearn_g2d.features import (
    ColumnMinMaxScaler,
    GlobalMinMaxScaler,
    NeighborProfile,
    ResidualPCA,
    SquashingScaler,
)
from sklearn_g2d.g2d import NetworkClassifier, WassersteinGAN

# The checks hand labels to `fit`.
pytestmark = pytest.mark.filterwarnings("ignore:y holds the labels")

# The checks fit often, and longer training makes no difference to them.
SHORT = NetworkClassifier(max_steps=30)


@parametrize_with_checks(
    [
        G2DOutlierDetector(),
        G2DOutlierDetector(generator=WassersteinGAN(max_steps=5, n_members=2), classifier=SHORT),
        G2DOutlierDetector.from_paper(
            data="tables", generator__max_steps=5, classifier__max_steps=30
        ),
        AVIDDetector(training=CellInpainting(max_steps=5)),
        AVIDDetector.from_paper(data="tables", training__max_steps=5),
        SquashingScaler(),
        SquashingScaler(common_scale=True),
        ColumnMinMaxScaler(),
        GlobalMinMaxScaler(),
        NeighborProfile(),
        NeighborProfile(measure="reconstruction"),
        ResidualPCA(),
    ]
)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize(
    "detectors",
    [
        "G2DOutlierDetector(classifier=NetworkClassifier(max_steps=30)), "
        "AVIDDetector(training=CellInpainting(max_steps=5))",
        pytest.param(
            "G2DOutlierDetector(), "
            "G2DOutlierDetector.from_paper(data='tables', generator__max_steps=5), "
            "AVIDDetector.from_paper(data='tables', training__max_steps=5)",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["short", "default and papers"],
)
def test_scikit_learn_checks_with_array_api(detectors):
    """The variable is read when SciPy is imported, hence a process of its own."""
    code = (
        "from sklearn.utils.estimator_checks import check_estimator\n"
        "from sklearn_g2d import AVIDDetector, G2DOutlierDetector\n"
        "from sklearn_g2d.avid import CellInpainting\n"
        "from sklearn_g2d.g2d import NetworkClassifier\n"
        f"for detector in [{detectors}]:\n"
        "    results = check_estimator(detector)\n"
        "    assert {r['status'] for r in results} <= {'passed', 'skipped'}, results\n"
        "    assert sum(r['status'] == 'passed' for r in results) >= 40, len(results)\n"
    )
    environment = {**os.environ, "SCIPY_ARRAY_API": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
