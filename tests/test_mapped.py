"""Memory-mapped files: read in blocks, which leave memory again."""

import resource
import sys

import numpy as np
import pytest
from sklearn.base import clone

from sklearn_g2d import AVIDDetector, G2DOutlierDetector
from sklearn_g2d.avid import CellInpainting
from sklearn_g2d.g2d import NetworkClassifier
from sklearn_g2d.utils import mapped

QUICK = {
    "G2D": G2DOutlierDetector(classifier=NetworkClassifier(max_steps=3, n_members=4)),
    "AVID": AVIDDetector(training=CellInpainting(max_steps=2)),
}


@pytest.fixture(scope="module")
def large_file(tmp_path_factory):
    """120 MB of normal rows."""
    path = tmp_path_factory.mktemp("mapped") / "large.npy"
    table = np.lib.format.open_memmap(path, "w+", np.float32, (1_500_000, 20))
    rows = np.random.default_rng(0).normal(size=(10_000, 20))
    for start in range(0, len(table), len(rows)):
        table[start : start + len(rows)] = rows
    table.flush()
    return path


def megabytes_held():
    """Memory of this process now, pages of mapped files included."""
    with open("/proc/self/statm") as figures:
        return int(figures.read().split()[1]) * resource.getpagesize() / 1e6


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_was_read_leaves_memory(large_file):
    X = np.load(large_file, mmap_mode="r")
    before = megabytes_held()
    mapped.check_finite(X, "Detector")
    total = sum(float(block.sum()) for block in mapped.blocks(X, 10_000))
    rows = mapped.take(X, np.arange(0, len(X), 150))
    assert megabytes_held() - before < 40
    assert X.sum() == pytest.approx(total, rel=1e-2)
    np.testing.assert_array_equal(rows, X[::150])
    assert megabytes_held() - before > 100  # what the check above is worth


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", QUICK)
def test_fit_never_holds_the_file(name, large_file):
    X = np.load(large_file, mmap_mode="r")
    small = np.array(X[:10_000])
    detector = clone(QUICK[name]).fit(small)  # loads libraries
    before = megabytes_held()
    held = []

    class Watch:
        def setup(self, estimator, context): ...

        def teardown(self, estimator, context): ...

        def on_fit_task_begin(self, estimator, context):
            held.append(megabytes_held())

        def on_fit_task_end(self, estimator, context):
            held.append(megabytes_held())

    detector.set_callbacks(Watch()).fit(X)
    assert len(held) > 4
    assert max(held) - before < 60


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("dtype", ["int16", "uint16", "int64", "float16"])
def test_numbers_of_other_types_are_converted_in_blocks(name, dtype, tmp_path):
    rows = np.random.default_rng(0).integers(0, 50, size=(60, 4))
    np.save(tmp_path / "rows.npy", rows.astype(dtype))
    X = np.load(tmp_path / "rows.npy", mmap_mode="r")
    detector = clone(QUICK[name]).set_params(random_state=0)
    expected = detector.fit(rows.astype(float)).score_samples(rows.astype(float))
    np.testing.assert_array_equal(detector.fit(X).score_samples(X), expected)


def test_changes_made_in_memory_only_are_kept(tmp_path):
    np.save(tmp_path / "rows.npy", np.zeros((50, 3)))
    X = np.load(tmp_path / "rows.npy", mmap_mode="c")
    X[7] = 5.0
    assert [block[7 % 10].sum() for block in mapped.blocks(X, 10)] == [15.0, 0, 0, 0, 0]
    assert X[7].sum() == 15.0


def test_nan_in_a_late_block_is_found(tmp_path):
    X = np.lib.format.open_memmap(tmp_path / "rows.npy", "w+", np.float32, (5_000_000, 3))
    X[-7, 1] = np.nan  # the rest of the file is a hole
    with pytest.raises(ValueError, match="Input X contains NaN"):
        G2DOutlierDetector().fit(X)
