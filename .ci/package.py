"""Build the package and use it as a stranger would: installed, away from its sources.

python .ci/package.py [--release]

With --release it first makes sure that nothing keeps this version from being uploaded to PyPI.
"""

import re
import subprocess
import sys
import tempfile
import tomllib
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACEHOLDER = "example.invalid"


def run(*command: str | Path, cwd: Path, stdout: int | None = None) -> None:
    """Run a command that has to succeed."""
    subprocess.run(command, cwd=cwd, check=True, stdout=stdout)


def obstacles(root: Path) -> list[str]:
    """List what has to be decided before this version can be released."""
    found = []
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    places = [name for name, url in project["urls"].items() if PLACEHOLDER in url]
    if places:
        found.append(
            f"pyproject.toml has a placeholder in the place of the repository's address "
            f"(project.urls: {', '.join(places)}). Write the address there."
        )
    if re.search(r"^## Unreleased", (root / "CHANGELOG.md").read_text(encoding="utf-8"), re.M):
        found.append('CHANGELOG.md says "Unreleased". Write the version and the date there.')
    return found


def check_contents(wheel: Path) -> None:
    """Raise unless the wheel holds every source file, the marker of types and the licence.

    No link in its description may be relative, because PyPI shows it away from the repository.
    """
    sources = (ROOT / "sklearn_g2d").rglob("*.py")
    expected = {str(path.relative_to(ROOT)) for path in sources} | {"sklearn_g2d/py.typed"}
    name = "-".join(wheel.name.split("-")[:2])
    expected.add(f"{name}.dist-info/licenses/LICENSE")
    with zipfile.ZipFile(wheel) as archive:
        found = set(archive.namelist())
        metadata = message_from_bytes(archive.read(f"{name}.dist-info/METADATA"))
    missing = expected - found
    foreign = {n for n in found - expected if not n.startswith(f"{name}.dist-info/")}
    if missing or foreign:
        raise SystemExit(f"{wheel.name} lacks {sorted(missing)} and has {sorted(foreign)} besides.")
    text = re.sub(r"```.*?```", "", metadata.get_payload(), flags=re.DOTALL)
    links = re.findall(r"""(?:\]\(|\]: |src="|href=")([^\s)"]+)""", text)
    relative = [link for link in links if not re.match(r"https://|#", link)]
    if relative or not links:
        raise SystemExit(f"The description in {wheel.name} has relative links: {relative}")


def main() -> None:
    """Build wheel and sdist, install one after the other, run the README's first example."""
    if "--release" in sys.argv[1:] and (found := obstacles(ROOT)):
        raise SystemExit("\n".join(["This version cannot be released yet.", *found]))
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    if example is None:
        raise SystemExit("README.md begins with no example.")
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        build = (sys.executable, "-m", "build", "--outdir", place, ROOT)
        run(*build, cwd=place, stdout=subprocess.DEVNULL)
        (wheel,), (sdist,) = place.glob("*.whl"), place.glob("*.tar.gz")
        check_contents(wheel)
        run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist, cwd=place)
        venv.create(place / "clean", with_pip=True)
        python = place / "clean" / "bin" / "python"
        quiet = ("-qq", "--disable-pip-version-check", "--constraint", ROOT / "constraints.txt")
        pip = (python, "-m", "pip")
        for archive in (wheel, sdist):
            run(*pip, "install", *quiet, archive, cwd=place)
            print(f"The README's example with {archive.name}:", flush=True)
            run(python, "-I", "-c", example[1], cwd=place)
            run(*pip, "uninstall", "-qq", "--yes", "sklearn_g2d", cwd=place)


if __name__ == "__main__":
    main()
