"""Write the notebooks beside this file anew, run, with their outputs.

    python docs/notebooks/write.py [NAME ...]

A notebook's cells stand in `NAME.py`: `# %%` begins a cell of code, `# %% [markdown]` one of text.
"""

import os
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

HERE = Path(__file__).parent


def sources() -> list[Path]:
    """Return the files of cells."""
    return sorted(path for path in HERE.glob("*.py") if path.name != "write.py")


def notebook_of(path: Path) -> nbformat.NotebookNode:
    """Return the notebook of a file of cells, not yet run."""
    cells = []
    for part in re.split(r"^# %%", path.read_text("utf-8"), flags=re.MULTILINE)[1:]:
        kind, _, body = part.partition("\n")
        number = f"cell-{len(cells)}"
        if "[markdown]" in kind:
            text = re.sub(r"^# ?", "", body.strip(), flags=re.MULTILINE)
            cells.append(new_markdown_cell(text, id=number))
        else:
            cells.append(new_code_cell(body.strip(), id=number))
    return new_notebook(
        cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    )


def run(notebook: nbformat.NotebookNode) -> None:
    """Run all cells in this folder; raises where one of them does."""
    os.environ["OMP_NUM_THREADS"] = "1"  # the same outputs whatever else runs
    os.environ["PYTHONWARNINGS"] = "ignore"  # they name this machine's folders
    NotebookClient(
        notebook, timeout=180, record_timing=False, resources={"metadata": {"path": str(HERE)}}
    ).execute()


def main() -> None:
    """Write all of them, or those that are named."""
    for path in [HERE / f"{name}.py" for name in sys.argv[1:]] or sources():
        notebook = notebook_of(path)
        run(notebook)
        notebook.metadata.pop("language_info", None)
        nbformat.write(notebook, path.with_suffix(".ipynb"))
        print(f"wrote {path.with_suffix('.ipynb')}", file=sys.stderr)


if __name__ == "__main__":
    main()
