"""scikit-learn's own checks of what an estimator is, none of them expected to fail."""

import os
import subprocess
import sys

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from sklearn_g2d import AVIDDetector, G2DOutlierDetector
from sklearn_g2d.features import NeighborProfile, RemainderPCA, SquashingScaler


@parametrize_with_checks(
    [
        G2DOutlierDetector(),
        # The published schedule takes half a minute a fit, and the checks fit often.
        G2DOutlierDetector(recipe="paper", max_steps=20),
        AVIDDetector(max_steps=5),
        AVIDDetector(recipe="paper", max_steps=5),
        SquashingScaler(),
        SquashingScaler(common_scale=True),
        NeighborProfile(),
        NeighborProfile(measure="reconstruction"),
        RemainderPCA(),
    ]
)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("detector", ["AVIDDetector", "G2DOutlierDetector"])
def test_scikit_learn_checks_with_array_api(detector):
    """The variable is read when SciPy is imported, hence a process of its own."""
    code = (
        "from sklearn.utils.estimator_checks import check_estimator\n"
        f"from sklearn_g2d import {detector}\n"
        "for recipe in ('default', 'paper'):\n"
        f"    results = check_estimator({detector}(recipe=recipe, max_steps=5))\n"
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
