"""Files by address: a path of this machine, or what fsspec opens (`s3://...`)."""

import os
from pathlib import Path
from typing import Any, Protocol

from nti.files import check_writable, write_file

__all__ = ["Folder", "LocalFolder", "beside", "is_remote", "open_folder", "read_bytes"]


CHECK = ".nti-check"
"""The name of what is written to see whether that can be done."""


def is_remote(address: str) -> bool:
    """Whether an address is of another system of files."""
    return "://" in address


def beside(address: str, name: str) -> str:
    """Return the address of a file that is named in another one, relative to its folder."""
    if is_remote(name) or os.path.isabs(name):
        return name
    if is_remote(address):
        return f"{address.rsplit('/', 1)[0]}/{name}"
    return str(Path(address).parent / name)


def read_bytes(address: str) -> bytes:
    """Return a file's bytes; OSError, which names the address, where it cannot be read."""
    if is_remote(address):
        system, path = _system(address)
        try:
            return bytes(system.cat_file(path))
        except Exception as error:  # each system raises what its own library raises
            raise OSError(f"{address}: cannot be read: {error}") from error
    try:
        return Path(address).read_bytes()
    except OSError as error:
        raise OSError(f"{address}: cannot be read: {error.strerror}") from error


class Folder(Protocol):
    """Where results go."""

    address: str

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes, None where there is none."""

    def write(self, name: str, data: bytes) -> None:
        """Write a file; OSError names it where that fails."""

    def names(self, name: str) -> set[str]:
        """Return the names of what is in a folder inside; none where there is no such folder."""

    def prepare(self) -> None:
        """Make the folder, and check that something can be written there."""


class LocalFolder:
    """A folder of this machine: each file is written whole or not at all."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.path = Path(address)

    def prepare(self) -> None:
        """Make the folder, and check that something can be written there."""
        check_writable(self.path / CHECK)

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes, None where there is none."""
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """Write a file."""
        write_file(self.path / name, data)

    def names(self, name: str) -> set[str]:
        """Return the names of what is in a folder inside."""
        try:
            return {entry.name for entry in os.scandir(self.path / name)}
        except FileNotFoundError:
            return set()


class RemoteFolder:
    """A folder that fsspec opens. A file that is cut short is not known again as a result."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._system, self._path = _system(address)

    def prepare(self) -> None:
        """Write something there, as that is the only check that all systems have."""
        self.write(CHECK, b"")

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes, None where there is none."""
        try:
            return bytes(self._system.cat_file(f"{self._path}/{name}"))
        except FileNotFoundError:
            return None
        except Exception as error:
            raise OSError(f"{self.address}/{name}: cannot be read: {error}") from error

    def write(self, name: str, data: bytes) -> None:
        """Write a file."""
        path = f"{self._path}/{name}"
        try:
            self._system.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            self._system.pipe_file(path, data)
        except Exception as error:  # each system raises what its own library raises
            raise OSError(f"{self.address}/{name} cannot be written: {error}") from error

    def names(self, name: str) -> set[str]:
        """Return the names of what is in a folder inside."""
        try:
            found = self._system.ls(f"{self._path}/{name}", detail=False)
        except FileNotFoundError:
            return set()
        except Exception as error:
            raise OSError(f"{self.address}/{name}: cannot be read: {error}") from error
        return {str(path).rstrip("/").rsplit("/", 1)[-1] for path in found}


def open_folder(address: str) -> Folder:
    """Return the folder of an address, which need not be there yet.

    Raises ValueError for an address that nothing opens, or for a file.
    """
    if is_remote(address):
        return RemoteFolder(address.rstrip("/"))
    if os.path.exists(address) and not os.path.isdir(address):
        raise ValueError(f"--output: got the file {address}, expected a folder's name")
    return LocalFolder(address)


def _system(address: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise ValueError(f"{address}: needs fsspec: pip install 'nti[cluster]'") from error
    try:
        system, path = url_to_fs(address)
    except (ValueError, ImportError) as error:
        raise ValueError(f"{address}: got an address that cannot be opened ({error})") from error
    return system, str(path)
