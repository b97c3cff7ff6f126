"""Files are written whole or not at all, where the user said, and nothing is left behind."""

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from nti import files
from nti.files import PART, check_writable, encode_picture, part_folder, write_file, write_picture


def test_a_file_and_its_folder_are_made(tmp_path: Path) -> None:
    write_file(tmp_path / "new" / "x", b"abc")
    assert (tmp_path / "new" / "x").read_bytes() == b"abc"
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["x"]


@pytest.mark.parametrize("umask", [0o022, 0o077], ids=["022", "077"])
def test_the_mode_is_what_the_umask_leaves(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_file(tmp_path / "x", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o666 & ~umask


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    link.symlink_to("there/x")  # to a file that is not there yet
    check_writable(link)
    for data in (b"first", b"second"):
        write_file(link, data)
        assert link.is_symlink() and (tmp_path / "there" / "x").read_bytes() == data


def test_special_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in (tmp_path / "pipe", tmp_path / "link", Path("/dev/null")):
        with pytest.raises(ValueError, match=f"output: got the special file {name}"):
            check_writable(name)
    with pytest.raises(ValueError, match="output: got the directory"):
        check_writable(tmp_path)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_checking_writes_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"old")
    check_writable(tmp_path / "x")
    check_writable(tmp_path / "new" / "y")
    assert (tmp_path / "x").read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["new", "x"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [("n" * 256, "File name too long"), ("file/x", "Not a directory"), ("loop", "symbolic links")],
    ids=["long", "file-as-folder", "loop"],
)
@pytest.mark.parametrize("act", [check_writable, lambda path: write_file(path, b"x")])
def test_what_cannot_be_written_is_one_line_with_the_name(
    tmp_path: Path, name: str, reason: str, act: object
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    assert callable(act)
    with pytest.raises(OSError, match=f"{name} cannot be written: .*{reason}"):
        act(tmp_path / name)
    assert not list(tmp_path.glob(f".*{files.PART}"))


FULL = """
import resource, sys
from pathlib import Path
from nti.files import write_file
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # a disk that is full after 4 KB
try:
    write_file(Path(sys.argv[1]), bytes(100_000))
except OSError as error:
    print(error)
"""


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    run = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True)
    assert f"{path} cannot be written: File too large" in run.stdout
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_names_of_250_bytes_can_be_written(tmp_path: Path) -> None:
    write_file(tmp_path / ("n" * 250), b"x")
    assert len(list(tmp_path.iterdir())) == 1


KILLED = """
import os, signal, sys
from nti import files
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
files.write_file(sys.argv[1], bytes(1000))
"""


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "x")])
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(files.PART)
    write_file(tmp_path / "y", b"")
    assert left.exists(), "it is too young to be taken for abandoned"
    old = time.time() - 2 * files.ABANDONED
    os.utime(left, (old, old))
    with left.open("rb") as file:  # a writer that is slow
        assert files._lock(file.fileno())
        write_file(tmp_path / "y", b"")
        assert left.exists()
    write_file(tmp_path / "y", b"")
    assert [p.name for p in tmp_path.iterdir()] == ["y"]


@pytest.mark.parametrize("suffix", files.PICTURES)
def test_pictures_are_written_in_the_format_of_their_name(tmp_path: Path, suffix: str) -> None:
    image = Image.new("RGB", (8, 8), (200, 30, 60))
    write_picture(image, tmp_path / f"x{suffix.upper()}")
    with Image.open(tmp_path / f"x{suffix.upper()}") as found:
        assert found.format == files.PICTURES[suffix]
        colour = found.convert("RGB").resize((1, 1)).tobytes()
    assert all(abs(a - b) <= 3 for a, b in zip(colour, (200, 30, 60), strict=True))


def test_a_picture_carries_no_metadata_of_other_pixels() -> None:
    image = Image.new("RGB", (8, 8))
    image.info = {"icc_profile": b"of another picture", "transparency": (0, 0, 0), "gamma": 1.0}
    bare = encode_picture(Image.new("RGB", (8, 8)), ".png")
    assert encode_picture(image, ".png") == bare
    assert image.info["gamma"] == 1.0


def test_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="output: got .xyz, expected .png"):
        encode_picture(Image.new("RGB", (8, 8)), ".xyz")


def test_a_folder_of_a_killed_process_is_removed_and_no_other(tmp_path: Path) -> None:
    script = (
        "import os, sys, pathlib; from nti.files import part_folder\n"
        "with part_folder(pathlib.Path(sys.argv[1])) as part:\n"
        "    (part / 'x').write_text('half'); print(part, flush=True)\n"
        "    sys.stdin.read()"
    )
    target = tmp_path / "out"
    mine = tmp_path / ".out-mine"
    mine.mkdir()
    command = [sys.executable, "-c", script, str(target)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        with part_folder(target) as part:
            assert theirs.is_dir(), "its process lives"
            assert part != theirs and part.name.endswith(PART)
        assert not part.exists()
        other.kill()
    assert (theirs / "x").exists(), "nobody was left to remove it"
    with part_folder(target) as part:
        assert not theirs.exists() and mine.is_dir()
        part.rename(target)
    assert target.is_dir()
