"""How long the lesson takes in a browser: until its first picture, for an edit, for a sampling.

    python docs/lesson/build.py -o lesson
    python benchmarks/lesson.py lesson --out benchmarks/results/lesson.csv

Chromium opens the page from this machine, with one thread of WebAssembly. A page is opened anew for
each repeat, without a cache.
"""

import argparse
import shutil
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from playwright.sync_api import sync_playwright

from rows import make_row, write_rows

EDIT = {"text": "a green heart on snow", "cross": 0.4, "self": 0.3, "w": 3, "blend": None}


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder, and says nothing."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def main() -> None:
    """Measure, and write a row for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("site", type=Path, help="what build.py made")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Quiet, directory=str(options.site.resolve()))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    times: dict[str, list[float]] = {"first picture": [], "edit": [], "sampling": []}
    program = shutil.which("chromium")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=program, args=["--no-sandbox"])
        version = browser.version
        for _ in range(options.repeats):
            page = browser.new_context().new_page()
            started = time.perf_counter()
            page.goto(f"http://127.0.0.1:{server.server_port}/index.html")
            page.wait_for_selector("body[data-ready=yes]", timeout=120_000)
            times["first picture"].append(1e3 * (time.perf_counter() - started))
            page.evaluate("given => lesson.compute('edit', given)", EDIT)  # loads its graph
            for name, job, given in (
                ("edit", "edit", EDIT),
                ("sampling", "sample", {"w": 7.5, "optimized": False}),
            ):
                started = time.perf_counter()
                page.evaluate("([job, given]) => lesson.compute(job, given)", [job, given])
                times[name].append(1e3 * (time.perf_counter() - started))
            page.close()
        browser.close()
    size = sum(path.stat().st_size for path in options.site.rglob("*") if path.is_file())
    rows = [
        make_row(
            "lesson", f"Chromium {version.split('.')[0]}", f"{name}, 20 steps, 128 px",
            milliseconds=each, quality=size / 1e6, unit="MB of all files",
        )
        for name, each in times.items()
    ]  # fmt: skip
    for row in rows:
        print(f"{row.case:<34} {row.p50_ms:>9.0f} ms")
    write_rows(rows, options.out)


if __name__ == "__main__":
    main()
