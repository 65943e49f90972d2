"""What pyproject.toml cannot say: the description on PyPI, the README with absolute links."""

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PICTURES = (".png", ".svg", ".gif", ".jpg")


def absolute(text: str, repository: str) -> str:
    """Let links to files of the repository, outside blocks of code, lead there from anywhere."""

    def link(found: re.Match[str]) -> str:
        kind = "raw" if found[1].endswith(PICTURES) else "blob"
        return f"]({repository}/{kind}/HEAD/{found[1]})"

    blocks = text.split("```")
    blocks[::2] = (re.sub(r"\]\((?!\w+:|#)([^)\s]+)\)", link, block) for block in blocks[::2])
    return "```".join(blocks)


setup(
    long_description=absolute(
        (ROOT / "README.md").read_text(encoding="utf-8"), PROJECT["urls"]["Repository"]
    ),
    long_description_content_type="text/markdown",
)
