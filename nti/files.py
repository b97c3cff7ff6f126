"""Files that are written whole or not at all, and the check of a name before the work."""

import contextlib
import errno
import io
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

try:
    import fcntl
except ImportError:  # a system without such locks tells abandoned files by their age alone
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "PICTURES",
    "check_writable",
    "encode_picture",
    "is_marked",
    "locked",
    "part_folder",
    "write_file",
    "write_picture",
]

PICTURES = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
}
"""The formats in which pictures are written, by the end of a file's name."""

FORMATS = sorted(set(PICTURES.values()))

SOFTWARE, MARK = 0x0131, "nti"
"""The tag of EXIF that names the program that wrote a picture, and what it says."""

PART = ".nti-part"
"""What the name of a file that is being written ends in."""

ABANDONED = 60.0
"""Seconds after which a part that nobody has locked is one of a writer that was killed."""

TRIED = 2**20
"""Bytes that a test write takes."""


def write_file(path: str | Path, data: bytes) -> None:
    """Write a file whole or not at all, and make its folder.

    The bytes go to a temporary file in the same folder, which takes the name once they are on the
    disk. A symbolic link is followed. The mode is what the umask leaves. Temporary files of writers
    that were killed are removed.

    Raises:
        ValueError: a directory, a pipe, a device or another special file.
        OSError: where anything fails; its message names the path. An old file is then as it was.

    """
    with _named(path):
        target = _target(path)
        _remove_abandoned(target.parent)
        with _part(target.parent) as (file, part):
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            file.close()
            os.replace(part, target)
        _sync_folder(target.parent)


def check_writable(path: str | Path) -> None:
    """Check that `write_file` will be able to write there, by writing; make the folder.

    An existing file is not touched.

    Raises:
        ValueError: a directory, a pipe, a device or another special file.
        OSError: a place where nothing can be written; its message names the path.

    """
    with _named(path):
        target = _target(path)
        with _part(target.parent) as (file, _):
            file.write(bytes(TRIED))
            file.flush()
            os.fsync(file.fileno())


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock by a file of its own, which is gone at the end.

    Raises BlockingIOError where another process or thread holds it, and OSError where the file
    cannot be made.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        if not _lock(descriptor):
            os.close(descriptor)
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        with contextlib.suppress(FileNotFoundError):
            # Who held it before may have removed the file between the two lines above.
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                break
        os.close(descriptor)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(descriptor)


@contextlib.contextmanager
def part_folder(target: Path) -> Iterator[Path]:
    """Make a hidden folder beside `target`, to be filled and renamed; it is gone at the end.

    Such folders of processes that were killed are removed.
    """
    begin = f".{target.name}-"
    for path in target.parent.iterdir():
        if path.name.startswith(begin) and path.name.endswith(PART) and path.is_dir():
            with _folder_lock(path) as free:
                if free:
                    shutil.rmtree(path, ignore_errors=True)
    part = target.with_name(f"{begin}{secrets.token_hex(4)}{PART}")
    part.mkdir()
    try:
        with _folder_lock(part):
            yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextlib.contextmanager
def _folder_lock(path: Path) -> Iterator[bool]:
    """Hold a folder's lock; False where another process holds it, or where folders have none."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        yield fcntl is not None and _lock(descriptor)
    finally:
        os.close(descriptor)


def encode_picture(image: "Image.Image", suffix: str) -> bytes:
    """Return a picture as the bytes of a file, in the format of a name that ends in `suffix`.

    It holds pixels and a mark that this program wrote them, by which `is_marked` knows it again: no
    profile, EXIF or other metadata that described other pixels. Raises ValueError for a suffix that
    is not in `PICTURES`.
    """
    from PIL import Image

    if suffix.lower() not in PICTURES:
        raise ValueError(f"output: got {suffix or 'no suffix'}, expected {', '.join(PICTURES)}")
    buffer = io.BytesIO()
    bare = image.copy()
    bare.info = {}
    exif = Image.Exif()
    exif[SOFTWARE] = MARK
    bare.save(buffer, PICTURES[suffix.lower()], quality=95, exif=exif)
    return buffer.getvalue()


def is_marked(path: Path) -> bool:
    """Whether a file is a picture that `encode_picture` made. BMP has no place for the mark."""
    from PIL import Image, UnidentifiedImageError

    try:
        with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
            return str(image.getexif().get(SOFTWARE, "")).strip("\0 ") == MARK
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        return False


def write_picture(image: "Image.Image", path: str | Path) -> None:
    """Write a picture in the format of its name; see `encode_picture` and `write_file`."""
    write_file(path, encode_picture(image, Path(path).suffix))


def _target(path: str | Path) -> Path:
    """Return the regular file, there or not yet, that a name stands for, and make its folder."""
    target = Path(os.path.realpath(path))
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        target.parent.mkdir(parents=True, exist_ok=True)
        return target
    if not stat.S_ISREG(mode):
        kind = "the directory" if stat.S_ISDIR(mode) else "the special file"
        raise ValueError(f"output: got {kind} {path}, expected a file's name")
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return target


@contextlib.contextmanager
def _named(path: str | Path) -> Iterator[None]:
    """Let an OSError say which file the user meant, not which temporary file failed."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"{path} cannot be written: {reason}") from error


@contextlib.contextmanager
def _part(folder: Path) -> Iterator[tuple[IO[bytes], Path]]:
    """Open a temporary file of a name of its own, which is gone at the end unless renamed."""
    path = folder / f".{secrets.token_hex(8)}{PART}"
    # As `open` would create it: the umask applies.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            _lock(file.fileno())
            yield file, path
    finally:
        path.unlink(missing_ok=True)


_BINARY = getattr(os, "O_BINARY", 0)


def _lock(descriptor: int) -> bool:
    """Lock a file until it is closed, by its process's death at the latest; False if it is."""
    with contextlib.suppress(OSError):  # of a system of files that has no locks
        if fcntl is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
    return True


def _remove_abandoned(folder: Path) -> None:
    for path in folder.glob(f".*{PART}"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime < ABANDONED:
                continue
            with path.open("rb") as file:
                if _lock(file.fileno()):
                    path.unlink()


def _sync_folder(folder: Path) -> None:
    """Bring a renaming to the disk, where a system lets folders be synced."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
