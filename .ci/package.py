"""Build the package and use it as a stranger would: installed, away from its sources.

python .ci/package.py
"""

import re
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(*command: str | Path, cwd: Path, stdout: int | None = None) -> None:
    """Run a command that has to succeed."""
    subprocess.run(command, cwd=cwd, check=True, stdout=stdout)


def check_contents(wheel: Path) -> None:
    """Raise unless the wheel holds every source file, the marker of types and the licence."""
    sources = (ROOT / "sklearn_g2d").rglob("*.py")
    expected = {str(path.relative_to(ROOT)) for path in sources} | {"sklearn_g2d/py.typed"}
    name = "-".join(wheel.name.split("-")[:2])
    expected.add(f"{name}.dist-info/licenses/LICENSE")
    with zipfile.ZipFile(wheel) as archive:
        found = set(archive.namelist())
    missing = expected - found
    foreign = {n for n in found - expected if not n.startswith(f"{name}.dist-info/")}
    if missing or foreign:
        raise SystemExit(f"{wheel.name} lacks {sorted(missing)} and has {sorted(foreign)} besides.")


def main() -> None:
    """Build wheel and sdist, install one after the other, run the README's first example."""
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    if example is None:
        raise SystemExit("README.md begins with no example.")
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        build = (sys.executable, "-m", "build", "--outdir", place, ROOT)
        run(*build, cwd=place, stdout=subprocess.DEVNULL)
        (wheel,), (sdist,) = place.glob("*.whl"), place.glob("*.tar.gz")
        check_contents(wheel)
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
