"""The lesson, built once, served on this machine and opened in a real browser."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NoReturn

import pytest

from seen import keep

BUILD = Path(__file__).parents[2] / "docs/lesson/build.py"

api = pytest.importorskip("playwright.sync_api")


def missing(program: str) -> NoReturn:
    """Skip what needs a program; in CI, where it is installed, fail."""
    if os.environ.get("CI"):
        pytest.fail(f"the lesson's tests need {program}")
    pytest.skip(f"needs {program}")


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder, and says nothing."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lesson's folder: `NTI_LESSON` names one that is built, else it is built here."""
    if built := os.environ.get("NTI_LESSON"):
        return Path(built)
    if shutil.which("npm") is None:
        missing("npm")
    folder = tmp_path_factory.mktemp("lesson") / "site"
    done = subprocess.run(
        [sys.executable, str(BUILD), "-o", str(folder)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def address(site: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/index.html"
    server.shutdown()
    thread.join()


@pytest.fixture(scope="session")
def browser() -> Iterator["api.Browser"]:
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        missing("Chromium")
    with api.sync_playwright() as play:
        started = play.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="session")
def page(browser: "api.Browser", address: str) -> Iterator["api.Page"]:
    """The page when its model is loaded; what the console complains of fails the test."""
    opened = browser.new_page(viewport={"width": 1100, "height": 900})
    complaints: list[str] = []
    opened.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto(address)
    opened.wait_for_selector("body[data-ready=yes]", timeout=120_000)
    yield opened
    keep(opened, "lesson")
    assert not complaints
