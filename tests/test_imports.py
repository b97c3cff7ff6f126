"""Who may import whom, and what importing must not cost."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

ROOMS = (
    (
        "nti.arguments",
        "nti.autocast",
        "nti.config",
        "nti.errors",
        "nti.files",
        "nti.fingerprint",
        "nti.vjp",
    ),
    ("nti.networks",),
    ("nti.sampling",),
    ("nti.execution",),
    ("nti.model", "nti.image"),
    ("nti.contact_sheet",),
    ("nti.inversion",),
    ("nti.editing",),
    ("nti.parsing",),
    ("nti.evaluation",),
    ("nti.datasets",),
    ("nti.export",),
    ("nti.report",),
    ("nti.inspection", "nti.demo"),
    ("nti.cli",),
    ("nti", "nti.__main__"),
)
"""In the order in which data passes them; each imports from those before it, or from itself."""

HEAVY = {"torch", "open_clip", "triton", "PIL", "safetensors", "einops", "numpy", "msgspec"}
"""What neither `import nti` nor a help text needs."""

FORBIDDEN = ("diffusers", "transformers", "numpy", "matplotlib")


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: relative import"
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def room_of(module: str) -> int | None:
    """The room of a module of nti, the most specific name deciding."""
    found = [
        (len(name), number)
        for number, names in enumerate(ROOMS)
        for name in names
        if module == name or module.startswith(f"{name}.")
    ]
    return max(found)[1] if found else None


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", sources("nti"), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_only_from_those_before_it(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    here = room_of(module)
    assert here is not None, f"{module} is in no room"
    for name in imports_of(path):
        outside = ("nti.kernels", "nti.weights_loader", "nti.__version__")
        if name.split(".")[0] != "nti" or name.startswith(outside):
            continue
        there = room_of(name)
        if name != "nti" and there is not None:
            own = module.rsplit(".", 1)[0] if module.count(".") > 1 else module
            assert there < here or name.startswith(own), f"{module} imports {name}"


@pytest.mark.parametrize("folder", ["kernels", "weights_loader"])
def test_kernels_and_loader_import_nothing_of_nti_but_themselves(folder: str) -> None:
    for path in sources(folder):
        for name in imports_of(path):
            if name.split(".")[0] == "nti":
                assert name == "nti" or name.startswith(f"nti.{folder}"), f"{path} imports {name}"


@pytest.mark.parametrize("folder", ["nti", "kernels", "weights_loader"])
def test_the_package_imports_no_other_pipeline(folder: str) -> None:
    for path in sources(folder):
        assert not {name.split(".")[0] for name in imports_of(path)} & set(FORBIDDEN), path


def run(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stderr


@pytest.mark.parametrize(
    "code",
    [
        "import nti",
        "import nti.kernels",
        "import nti.cli\ntry:\n nti.cli.main(['--help'])\nexcept SystemExit: pass",
    ],
    ids=["nti", "kernels", "help"],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    imported = {line.rsplit("|", 1)[-1].strip() for line in run(code).splitlines()}
    assert "nti" in imported
    assert not imported & HEAVY


def test_every_public_name_is_there() -> None:
    import nti

    for name in nti.__all__:
        assert getattr(nti, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = nti.nonsense
