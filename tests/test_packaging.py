"""What pyproject.toml allows, and what `make test-oldest` takes, agree."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent


def test_the_oldest_versions_are_the_oldest_that_are_allowed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    oldest = dict(line.split("==") for line in lines if not line.startswith("#"))
    asked = project["dependencies"] + [
        requirement
        for extra in ("images", "onnx", "plot", "progress", "video")
        for requirement in project["optional-dependencies"][extra]
    ]
    for requirement in map(Requirement, asked):
        if requirement.name == "torch":
            continue  # see the file
        (bound,) = requirement.specifier
        pinned = Version(oldest[requirement.name])
        assert bound.operator == ">="
        assert pinned in requirement.specifier
        parts = len(Version(bound.version).release)
        assert pinned.release[:parts] == Version(bound.version).release, requirement.name
