"""Python blocks of the README and of the documentation's pages are tests, too.

Each page has one namespace, from its first block to its last, and a folder of its own to write
to. `<!-- skip: next -->` leaves a block out. A block of "text" says what the Python block before it
prints; where that block is left out, nothing has been printed, and nothing is compared.
"""

import contextlib
import io
import os
import tempfile

import pytest
from sybil import Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser, SkipParser

SLOW_PAGES = {"maps.md", "scaling.md"}
_evaluate = PythonEvaluator()


@pytest.hookimpl(tryfirst=True)  # before deselection
def pytest_collection_modifyitems(items):
    """Mark the pages that train for a minute, or start processes."""
    for item in items:
        if item.path.name in SLOW_PAGES:
            item.add_marker(pytest.mark.slow)


def _compare_output(example):
    printed, example.namespace["_printed"] = example.namespace["_printed"], io.StringIO()
    if printed.getvalue():
        assert printed.getvalue() == example.parsed


def _run(example):
    example.namespace["_printed"] = io.StringIO()
    with contextlib.redirect_stdout(example.namespace["_printed"]):
        return _evaluate(example)


def _enter_folder(namespace):
    namespace["_printed"] = io.StringIO()
    namespace["_former"], namespace["_folder"] = os.getcwd(), tempfile.TemporaryDirectory()
    os.chdir(namespace["_folder"].name)


def _leave_folder(namespace):
    os.chdir(namespace["_former"])
    namespace["_folder"].cleanup()


pytest_collect_file = Sybil(
    parsers=[
        CodeBlockParser(language="python", evaluator=_run),
        CodeBlockParser(language="text", evaluator=_compare_output),
        SkipParser(),
    ],
    patterns=["README.md", "docs/*.md"],
    setup=_enter_folder,
    teardown=_leave_folder,
).pytest()
