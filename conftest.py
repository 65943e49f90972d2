"""Python blocks of the README and of the documentation's pages are tests, too.

Each page has one namespace, from its first block to its last, and a folder of its own to write
to. `<!-- skip: next -->` leaves a block out.
"""

import os
import tempfile

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

SLOW_PAGES = {"maps.md"}


@pytest.hookimpl(tryfirst=True)  # before deselection
def pytest_collection_modifyitems(items):
    """Mark the pages that train for a minute."""
    for item in items:
        if item.path.name in SLOW_PAGES:
            item.add_marker(pytest.mark.slow)


def _enter_folder(namespace):
    namespace["_former"], namespace["_folder"] = os.getcwd(), tempfile.TemporaryDirectory()
    os.chdir(namespace["_folder"].name)


def _leave_folder(namespace):
    os.chdir(namespace["_former"])
    namespace["_folder"].cleanup()


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "docs/*.md"],
    setup=_enter_folder,
    teardown=_leave_folder,
).pytest()
