"""The pages: links lead somewhere, code and commands are those of today, and the book builds."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import nti
from nti.cli import _parser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOTEBOOKS = ROOT / "docs/notebooks"

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def slug(heading: str) -> str:
    words = re.sub(r"[^\w\s-]", "", heading.lower().strip())
    return re.sub(r"\s", "-", words)


def anchors(page: Path) -> set[str]:
    lines = page.read_text("utf-8").splitlines()
    return {slug(line.lstrip("#")) for line in lines if line.startswith("#")}


def blocks(*languages: str) -> list[tuple[str, str]]:
    return [
        (str(page.relative_to(ROOT)), body)
        for page in PAGES
        for language, body in FENCE.findall(page.read_text("utf-8"))
        if language in languages
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text("utf-8")):
        if target.startswith(("http", "data:")):
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.exists(), target
        assert ROOT in (there, *there.parents), target
        if anchor and there.suffix == ".md":
            assert anchor in anchors(there), target


def test_readme_takes_two_minutes() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) < 150


@pytest.mark.parametrize(("page", "code"), blocks("python"))
def test_code_uses_names_that_there_are(page: str, code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "nti":
            assert hasattr(nti, node.attr), f"nti.{node.attr}"
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("nti"):
            done = __import__(node.module, fromlist=["x"])
            assert all(hasattr(done, each.name) for each in node.names), node.module


@pytest.mark.parametrize(("page", "code"), blocks("sh"))
def test_commands_take_the_options_that_are_written(page: str, code: str) -> None:
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["nti"] and not any(word[0] in "<[" or "..." in word for word in words):
            _parser().parse_args(words[1:])


def test_every_public_name_is_in_the_reference() -> None:
    page = (ROOT / "docs/api.md").read_text("utf-8")
    assert re.findall(r"auto\w+:: nti\.[\w.]+\.(\w+)", page) == [
        name for names in nti._HOMES.values() for name in names
    ]


def test_the_book_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "html", "docs", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "algorithm.html").read_text("utf-8")
    assert "<math" in page and "adam" in page, "formulas, and the code of the source"
    assert 'src="http' not in page


@pytest.mark.parametrize("name", ["algorithm", "attention", "checkpoint"])
def test_a_notebook_runs_and_is_committed_with_its_outputs(name: str) -> None:
    nbformat = pytest.importorskip("nbformat")
    sys.path.insert(0, str(NOTEBOOKS))
    try:
        from write import notebook_of, run
    finally:
        sys.path.remove(str(NOTEBOOKS))
    path = NOTEBOOKS / f"{name}.ipynb"
    committed, made = nbformat.read(path, 4), notebook_of(path.with_suffix(".py"))
    assert [cell.source for cell in committed.cells] == [cell.source for cell in made.cells]
    assert not re.search(r"/(?:root|home|tmp|usr)/", path.read_text("utf-8"))
    run(made)
    for ours, theirs in zip(committed.cells, made.cells, strict=True):
        assert kinds_of_outputs(ours) == kinds_of_outputs(theirs), ours.source


def kinds_of_outputs(cell: Any) -> list[tuple[str, list[str]]]:
    """Each output's type and the types of its data. On a busy machine what a cell prints arrives in
    several pieces, which count as one."""
    found: list[tuple[str, list[str]]] = []
    for each in cell.get("outputs", []):
        kind = each.output_type, sorted(each.get("data", {}))
        if kind[0] != "stream" or found[-1:] != [kind]:
            found.append(kind)
    return found
