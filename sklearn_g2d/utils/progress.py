"""Messages to the logger about the progress of a long computation."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

logger = logging.getLogger("sklearn_g2d")

SECONDS_BETWEEN_REPORTS = 10.0


def reporter(name: str, n: int, what: str) -> Callable[[int], None]:
    """Return a function that takes the number of finished items, and logs it every ten seconds."""
    last_report = time.monotonic()

    def report(n_done: int) -> None:
        nonlocal last_report
        if time.monotonic() - last_report > SECONDS_BETWEEN_REPORTS:
            last_report = time.monotonic()
            logger.info("%s: %d of %d %s", name, n_done, n, what)

    return report
