"""The built site as a browser shows it, on a desk and on a phone.

    python docs/checks/browser.py docs/_build/html [--screenshots DIR]

Every page: no broken picture and none without an alternative text, no error on the console, nothing
asked of another server, nothing wider than the screen, no heading and no head of a table cut or
hidden. Then the search shows the right page first for words that users type, and code is copied
without its prompts. Where there is no Chromium this says so and ends well.
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
from urllib.parse import quote, urljoin, urlsplit

from playwright.sync_api import Error, Page, sync_playwright

BROWSERS = ["chromium", "chromium-browser", "google-chrome", "chrome"]
SCREENS = {
    "desktop": {"width": 1280, "height": 900},
    "phone": {"width": 390, "height": 844},
}
# scikit-learn's picture of a ColumnTransformer warns of its own buttons.
NOT_OURS = "Expected copy-paste icon is missing"

# What users type, and the pages that may come first: the search shows one of them at the top.
SEARCHES = {
    "explain": ["user_guide"],
    "cite": ["index", "faq"],
    "missing values": ["tutorial_table", "faq"],
    "categorical": ["tutorial_table", "faq"],
    "unlabelled": ["tutorial_table"],
    "gpu": ["scaling", "faq"],
    "install": ["getting_started"],
    "pyod": ["from_pyod"],
    "threshold": ["thresholds"],
    "false alarm": ["thresholds"],
    "p-value": ["thresholds"],
    "contamination": ["thresholds"],
    "conformal": ["thresholds"],
    "save": ["saving"],
    "onnx": ["saving"],
    "pickle": ["saving", "security"],
    "video": ["video"],
    "camera": ["video"],
    "photographs": ["inspection", "tutorial_photographs"],
    "anomalib": ["from_anomalib"],
    "defect": ["inspection"],
    "images": ["images"],
    "embeddings": ["images"],
    "heatmap": ["maps", "inspection"],
    "pipeline": ["getting_started", "user_guide"],
    "grid search": ["model_selection"],
    "hyperparameters": ["parts", "model_selection"],
    "cross validation": ["model_selection"],
    "time": ["results/times", "faq"],
    "speed": ["results/speed", "scaling"],
    "checkpoint": ["checkpoints"],
    "sign": ["conventions"],
    "security": ["security"],
    "predict": ["getting_started"],
    "benchmark": ["results/comparison"],
    "auroc": ["model_selection"],
    "tutorial": ["tutorials"],
    "G2DOutlierDetector": ["api/sklearn_g2d.G2DOutlierDetector"],
    "equal_error_rate": ["api/sklearn_g2d.metrics.equal_error_rate"],
}

FAULTS = r"""() => {
    const faults = [];
    const article = document.querySelector("article") || document.body;
    const textOf = (element) => element.textContent.replace(/[#\s]+/g, " ").trim();
    // Is text of an element outside of the screen, or of a box around it? What scrolls with a
    // table is not lost; a heading has to be seen as it stands.
    const isCut = (element) => {
        const range = document.createRange();
        range.selectNodeContents(element);
        const { left, right, bottom } = range.getBoundingClientRect();
        const table = element.closest("table");
        for (let box = element; box && box !== document.body; box = box.parentElement) {
            const { overflowX, overflowY } = getComputedStyle(box);
            const framesTable = table && box !== article && box.contains(table);
            if (framesTable && /auto|scroll/.test(overflowX)) return false;
            const frame = box.getBoundingClientRect();
            if (overflowX !== "visible" && (right > frame.right + 1 || left < frame.left - 1))
                return true;
            if (overflowY !== "visible" && bottom > frame.bottom + 1) return true;
        }
        return left < -1 || right > window.innerWidth + 1;
    };
    const isHidden = (element) => {
        const { width, height } = element.getBoundingClientRect();
        return width === 0 || height === 0 || getComputedStyle(element).visibility === "hidden";
    };
    for (const image of document.images) {
        if (image.complete && image.naturalWidth === 0) faults.push(`broken picture: ${image.src}`);
        const alt = (image.getAttribute("alt") || "").trim();
        // sphinx-gallery's last resort is the name of the script.
        if (!alt || /^plot [a-z]/.test(alt) || /\.(png|svg|jpe?g|gif)$/.test(alt))
            faults.push(`no alternative text: ${image.src} "${alt}"`);
    }
    for (const heading of article.querySelectorAll("h1, h2, h3, h4, h5, h6, .rubric, dt.sig")) {
        if (heading.closest(".visually-hidden, dialog")) continue;
        if (isHidden(heading)) faults.push(`hidden heading: ${textOf(heading)}`);
        else if (isCut(heading)) faults.push(`cut heading: ${textOf(heading)}`);
    }
    for (const cell of article.querySelectorAll("thead th")) {
        if (!textOf(cell)) continue;
        if (isHidden(cell)) faults.push(`hidden head of a table: ${textOf(cell)}`);
        else if (isCut(cell)) faults.push(`cut head of a table: ${textOf(cell)}`);
    }
    const excess = document.documentElement.scrollWidth - window.innerWidth;
    if (excess > 0) faults.push(`${excess} pixels wider than the screen`);
    return faults;
}"""


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Say nothing."""


class _QuietServer(ThreadingHTTPServer):
    def handle_error(self, *args: object) -> None:
        """Say nothing: a browser that leaves a page cuts its connections."""


@contextmanager
def serve(root: Path) -> Iterator[str]:
    """Serve a folder on a free port of this machine; yields its address."""
    handler = partial(_QuietHandler, directory=str(root))
    with _QuietServer(("127.0.0.1", 0), handler) as server:
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
            if message.type in ("error", "warning") and NOT_OURS not in message.text
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
    problems += page.evaluate(FAULTS)
    if screenshot:
        page.screenshot(path=screenshot, full_page=True)
    return list(problems)


def search(page: Page, address: str, words: str, accepted: list[str]) -> list[str]:
    """Look for what a user types; the first result has to be one of the pages."""
    page.goto(f"{address}/search.html?q={quote(words)}")
    result = page.locator("#search-results li a").first
    try:
        result.wait_for(timeout=20_000)
    except Error as error:
        return [f'search.html: "{words}" is not found ({error})']
    path = urlsplit(urljoin(page.url, result.get_attribute("href"))).path
    found = path.strip("/").removesuffix(".html")
    return [] if found in accepted else [f'search.html: "{words}" leads to {found} first']


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
            if screen == "desktop":
                for words, accepted in SEARCHES.items():
                    yield from search(page, address, words, accepted)
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
