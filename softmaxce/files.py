"""Files that are whole at any instant, whatever dies, and a lock on a folder that dies with its holder.

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
    """Write `content` beside `file`, flushed to the disk, ready to be renamed to it. Returns: where it lies."""
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
        error.filename = str(file)  # a full disk does not say which file it was
        with contextlib.suppress(OSError):  # what failed is told; half a temporary file is in nobody's way
            staged.unlink()
        raise
    return staged


def replace_file(file: Path, content: bytes) -> None:
    """Write a file so that at any instant the old or the new one is there, whole, also after a power cut."""
    stage(file, content).replace(file)
    flush_folder(file.parent)


def keep_as(file: Path, other: Path) -> None:
    """Make `other` a second name of `file`'s content, at once; `file` stays. No flush."""
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
        staged.unlink()  # it is still there if both were names of one file already


def flush_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, not in the system's memory alone."""
    if hasattr(os, "O_DIRECTORY"):  # Windows cannot open a folder, and needs no flush of it
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process alone. The system lets go when the process dies, however it dies.

    Raises: RunError, with the holder, if another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with (folder / LOCK).open("a+", encoding="utf-8") as stream:
        try:
            # Not flock: worker processes would inherit that, and hold the folder when their parent has been killed.
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            stream.seek(0)
            holder = stream.read().strip() or "another process"
            raise RunError(f"{folder}: is being trained by {holder}; wait for it, or end it, and try again") from None
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        stream.flush()
        yield
