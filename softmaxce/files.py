"""Atomic writing of files, and a lock on a folder that ends with its process.

Every step that writes is a call to `os`, so that a test can make each of them fail in turn.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from .errors import RunError

TEMPORARY = ".tmp"
LOCK = ".lock"


def stage(file: Path, content: bytes) -> Path:
    """Write `content` beside `file`, flushed to the disk, ready to be renamed. Returns: the temporary file."""
    staged = file.with_name(file.name + TEMPORARY)
    try:
        descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o666)
        try:
            left = memoryview(content)
            while left:
                left = left[os.write(descriptor, left) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        error.filename = str(file)  # the error of a full disk names no file
        with contextlib.suppress(OSError):  # an incomplete temporary file does no harm
            staged.unlink()
        raise
    return staged


def replace_file(file: Path, content: bytes) -> None:
    """Write a file atomically: at any instant, even after a power cut, it has its old content or the new one."""
    stage(file, content).replace(file)
    flush_folder(file.parent)


def keep_as(file: Path, other: Path) -> None:
    """Make `other` a second name (hard link) of `file`'s content, atomically. No flush."""
    staged = other.with_name(other.name + TEMPORARY)
    with contextlib.suppress(FileNotFoundError):  # there is nothing to remove
        staged.unlink()
    try:
        os.link(file, staged)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        stage(other, file.read_bytes())  # a file system without hard links
    staged.replace(other)
    with contextlib.suppress(FileNotFoundError):  # there is nothing to remove
        staged.unlink()  # it remains if both were names of one file already


def flush_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk (fsync)."""
    if hasattr(os, "O_DIRECTORY"):  # Windows cannot open a folder, and needs no flush
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder for this process. The system releases the lock when the process ends, however it ends.

    Raises: RunError, with the process that has the lock, if it is locked already.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with (folder / LOCK).open("a+", encoding="utf-8") as stream:
        try:
            # Not flock: worker processes would inherit that lock, and keep it after their parent was killed.
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            stream.seek(0)
            holder = stream.read().strip() or "another process"
            raise RunError(f"{folder}: is being trained by {holder}; wait for it, or end it, and try again") from None
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        stream.flush()
        yield
