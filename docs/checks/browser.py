"""The built site as a browser shows it, on a desk and on a phone.

    python docs/checks/browser.py docs/_build/html [--screenshots DIR]

Every page: no broken picture, no error on the console, nothing asked of another server, nothing
wider than the screen. Then a search finds, and code is copied without its prompts. Where there is
no Chromium this says so and ends well.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

BROWSERS = ["chromium", "chromium-browser", "google-chrome", "chrome"]
SCREENS = {
    "desktop": {"width": 1280, "height": 900},
    "phone": {"width": 390, "height": 844},
}
BROKEN_PICTURES = """() => [...document.images]
    .filter(image => image.complete && image.naturalWidth === 0).map(image => image.src)"""
EXCESS_WIDTH = "() => document.documentElement.scrollWidth - window.innerWidth"


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Say nothing."""


@contextmanager
def serve(root: Path) -> Iterator[str]:
    """Serve a folder on a free port of this machine; yields its address."""
    handler = partial(_QuietHandler, directory=str(root))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def watch(page: Page, address: str) -> list[str]:
    """Collect in a list what goes wrong while pages are shown."""
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(f"script error: {error}"))
    page.on(
        "console",
        lambda message: (
            problems.append(f"console: {message.text}")
            if message.type in ("error", "warning")
            else None
        ),
    )
    page.on(
        "request",
        lambda request: (
            problems.append(f"asks another server: {request.url}")
            if not request.url.startswith((address, "data:", "blob:"))
            else None
        ),
    )
    page.on(
        "response",
        lambda response: (
            problems.append(f"{response.status}: {response.url}")
            if response.status >= 400
            else None
        ),
    )
    return problems


def look_at(page: Page, url: str, problems: list[str], screenshot: Path | None) -> list[str]:
    """Show one page; returns what is wrong with it."""
    problems.clear()
    page.goto(url, wait_until="load")
    problems += [f"broken picture: {source}" for source in page.evaluate(BROKEN_PICTURES)]
    if (excess := page.evaluate(EXCESS_WIDTH)) > 0:
        problems.append(f"{excess} pixels wider than the screen")
    if screenshot:
        page.screenshot(path=screenshot, full_page=True)
    return list(problems)


def search(page: Page, address: str) -> list[str]:
    """Look for a word of the guide."""
    page.goto(f"{address}/search.html?q=conformal")
    try:
        page.wait_for_selector("#search-results li a", timeout=20_000)
    except Exception as error:
        return [f'search.html: "conformal" is not found ({error})']
    return []


def copy(page: Page, address: str, name: str, expected: str) -> list[str]:
    """Copy the first block of code by its button; prompts stay behind."""
    page.goto(f"{address}/{name}")
    page.locator("div[class*=highlight-] button.copybtn").first.click(force=True)
    page.wait_for_timeout(300)
    copied = page.evaluate("() => navigator.clipboard.readText()")
    if copied.startswith(expected) and ">>>" not in copied:
        return []
    return [f"{name}: copied {copied!r}, expected {expected!r} first"]


def check(root: Path, executable: str, screenshots: Path | None) -> Iterator[str]:
    """Look at every page on both screens; yields what is wrong."""
    names = [
        str(path.relative_to(root))
        for path in sorted(root.rglob("*.html"))
        if root / "_static" not in path.parents
    ]
    print(f"{len(names)} pages on {len(SCREENS)} screens", flush=True)
    with serve(root) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        for screen, size in SCREENS.items():
            context = browser.new_context(viewport=size)  # type: ignore[arg-type]
            context.grant_permissions(["clipboard-read", "clipboard-write"], origin=address)
            page = context.new_page()
            problems = watch(page, address)
            for name in names:
                picture = None
                if screenshots:
                    picture = screenshots / screen / f"{name.replace('/', '_')}.png"
                wrong = look_at(page, f"{address}/{name}", problems, picture)
                yield from (f"{screen}, {name}: {problem}" for problem in wrong)
            yield from search(page, address)
            yield from copy(page, address, "getting_started.html", "pip install")
            yield from copy(
                page, address, "api/sklearn_g2d.metrics.equal_error_rate.html", "from sklearn_g2d"
            )
            context.close()
        browser.close()


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--screenshots", type=Path, help="folder for a picture of every page")
    args = parser.parse_args()
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        print(f"Skipped: none of {', '.join(BROWSERS)} is installed.")
        return
    n_problems = 0
    for problem in check(args.root.resolve(), executable, args.screenshots):
        print(problem, flush=True)
        n_problems += 1
    sys.exit(f"{n_problems} problems" if n_problems else 0)


if __name__ == "__main__":
    main()
