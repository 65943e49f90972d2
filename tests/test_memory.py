"""Memory stays flat; `python -m benchmarks.memory` measures it for longer."""

import multiprocessing

import pytest

from benchmarks.memory import CASES, measure


@pytest.mark.slow
@pytest.mark.parametrize(("what", "n_calls"), [("fit", 100), ("score", 2000)])
@pytest.mark.parametrize("case", [name for name in CASES if "table" in name])
def test_memory_stays_flat(case, what, n_calls):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        readings = [row["MiB"] for row in pool.apply(measure, (case, what, n_calls, 1))]
    # The allocator settles in the first half; a leak would go on in the second.
    assert readings[-1] - readings[4] < 2
