"""What is installed: nti and its dist-info, and no other name at the top level."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_wheel_holds_only_nti(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir"]
    # Built from a copy: setuptools leaves its work next to the sources.
    copy = tmp_path / "source"
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, files.stdout.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    built = subprocess.run([*command, str(tmp_path), str(copy)], capture_output=True, text=True)
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"nti", f"{wheel.name.rsplit('-', 3)[0]}.dist-info"}
    for wanted in (
        "nti/py.typed",
        "nti/kernels/cfg_attention.py",
        "nti/weights_loader/sd_v1.py",
        "nti/weights_loader/shapes.safetensors",
        "nti/weights_loader/MODEL_CARD.md",
        "nti/weights_loader/samples/captions.json",
        "nti/weights_loader/samples/purple-circle.png",
    ):
        assert wanted in names, wanted
    modules = {name for name in names if name.endswith(".py")}
    folders = (("nti", "nti"), ("kernels", "nti/kernels"), ("weights_loader", "nti/weights_loader"))
    for folder, inside in folders:
        for path in (ROOT / folder).rglob("*.py"):
            assert f"{inside}/{path.relative_to(ROOT / folder).as_posix()}" in modules
