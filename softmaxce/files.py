"""Files: regular ones read within a limit, written atomically and never through a link; and a lock on a folder.

A run folder may come from anyone: a name in it may be a link to a file elsewhere, a pipe that nobody writes to, or a
file without end. All of softmaxce's files are read and written here.

Every step that writes is a call to `os`, so that a test can make each of them fail in turn.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any, BinaryIO

from .errors import RunError, RunInUseError

TEMPORARY = ".tmp"
LOCK = ".lock"
MAX_NAME = 200  # bytes of a file's name that fit before a temporary file's ending
MAX_DIGITS = 300  # of a whole number in JSON: more do not fit a float

NONBLOCK, NOFOLLOW = getattr(os, "O_NONBLOCK", 0), getattr(os, "O_NOFOLLOW", 0)  # Windows has neither
BINARY = getattr(os, "O_BINARY", 0)  # only Windows has it


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with the home folder for a leading ~; as it is where there is no such user, so that it is looked for."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises RuntimeError there


# -- reading ----------------------------------------------------------------------------------------------------------


def open_file(file: str | os.PathLike[str]) -> BufferedReader:
    """Open a regular file for reading. Links are followed.

    Raises: OSError, also if it is a folder, a pipe, a device or a socket.
    """
    _check_regular(
        Path(file).stat(), file
    )  # first: opening waits for a pipe's writer, and some devices act when opened
    descriptor = os.open(file, os.O_RDONLY | NONBLOCK | BINARY)
    try:
        _check_regular(os.fstat(descriptor), file)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _check_regular(status: os.stat_result, file: str | os.PathLike[str]) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", os.fspath(file))
    if not stat.S_ISREG(status.st_mode):
        kind = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}.get(stat.S_IFMT(status.st_mode), "a device")
        raise OSError(errno.EINVAL, f"it is {kind}, not a file", os.fspath(file))


def read_file(file: str | os.PathLike[str], limit: int) -> bytes:
    """A regular file's content. Raises: OSError, also if it is no regular file or has more than `limit` bytes."""
    with open_file(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        content = stream.read(limit + 1) if size <= limit else b""  # the size of files in /proc is 0
    if max(size, len(content)) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit:,} bytes", os.fspath(file))
    return content


def read_json(file: str | os.PathLike[str], limit: int) -> Any:
    """A JSON file's data. Raises: OSError as read_file; ValueError as parse_json."""
    return parse_json(read_file(file, limit))


def parse_json(text: str | bytes) -> Any:
    """JSON as data, whose numbers can all be converted to float. Raises: ValueError."""
    try:
        return json.loads(text, parse_int=_parse_int)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _parse_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


# -- writing ----------------------------------------------------------------------------------------------------------


def stage(file: Path, content: bytes) -> Path:
    """Write `content` beside `file`, flushed to the disk, ready to be renamed.

    Returns: the temporary file, which is new and has a random name: no link that lies there is followed.
    """
    staged = _temporary(file)
    try:
        descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NOFOLLOW | BINARY, 0o666)
        try:
            _write(descriptor, content)
        finally:
            os.close(descriptor)
    except BaseException as error:  # ctrl-C too
        if isinstance(error, OSError):
            error.filename = str(file)  # the error of a full disk names no file
        with contextlib.suppress(OSError):  # an incomplete temporary file does no harm
            staged.unlink()
        raise
    return staged


def _write(descriptor: int, content: bytes) -> None:
    """Write all of `content` and flush it to the disk."""
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]
    _flush(descriptor)


def _temporary(file: Path) -> Path:
    name = file.name if len(os.fsencode(file.name)) <= MAX_NAME else "softmaxce"
    return file.with_name(f"{name}.{os.urandom(8).hex()}{TEMPORARY}")


def staged_files(file: Path) -> list[Path]:
    """The temporary files that `stage` made for `file` and that were not renamed; earlier versions added .tmp alone."""
    names = re.compile(rf"{re.escape(file.name)}(\.[0-9a-f]{{16}})?{re.escape(TEMPORARY)}")
    return [entry for entry in sorted(file.parent.iterdir()) if names.fullmatch(entry.name)]


def replace_file(file: Path, content: bytes) -> None:
    """Write a file atomically: at any instant, even after a power cut, it has its old content or the new one.

    A link of that name is replaced, not followed.
    """
    stage(file, content).replace(file)
    flush_folder(file.parent)


@contextlib.contextmanager
def replaced(file: Path) -> Iterator[BinaryIO]:
    """A stream whose content becomes that of `file` at the end of the block, atomically, unless it raises.

    It is for content that is too large to be in memory as `replace_file` takes it.
    """
    staged = _temporary(file)
    try:
        descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NOFOLLOW | BINARY, 0o666)
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            _flush(descriptor)
        staged.replace(file)
        flush_folder(file.parent)
    except BaseException as error:  # ctrl-C too
        if isinstance(error, OSError):
            error.filename = str(file)  # the error of a full disk names no file
        with contextlib.suppress(OSError):  # an incomplete temporary file does no harm
            staged.unlink()
        raise


def append(file: Path, line: bytes) -> None:
    """Append a line to a file and flush it to the disk; if it cannot be written whole, the file is as it was."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | NOFOLLOW | BINARY, 0o666)
        try:
            size = os.fstat(descriptor).st_size
            try:
                _write(descriptor, line)
            except OSError:
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)
    except OSError as error:
        error.filename = str(file)  # the error of a full disk names no file
        raise


PAGE_MARK = b'content="softmaxce"'  # in the head of every page that softmaxce writes


def check_page(file: Path, option: str, *, force: bool) -> None:
    """Refuse a place where a page cannot be written, or would replace what is no page of softmaxce.

    Args:
        file: the page's file.
        option: that named it, for messages; empty if none did.
        force: replace any regular file.
    Raises: RunError.
    """

    def is_page() -> bool:
        with writable(file), file.open("rb") as stream:
            return PAGE_MARK in stream.read(4096)

    check_output(file, option, "page", "page.html", is_page, force=force)


def check_output(
    file: Path, option: str, kind: str, example: str, is_ours: Callable[[], bool], *, force: bool | None = None
) -> None:
    """Refuse a place where a file cannot be written, or would replace what softmaxce did not write.

    Args:
        file: the file to write.
        option: that named it, for messages; empty if none did.
        kind: what is written, such as `page`.
        example: a name for such a file.
        is_ours: whether the file that is there now is of that kind.
        force: replace any regular file; None if the command has no such option.
    Raises: RunError.
    """
    name = f"{option} {file}".lstrip()
    if file.is_dir():
        raise RunError(f"{name}: is a folder; name the {kind}'s file, for example {file / example}")
    if os.path.lexists(file):
        if not file.is_file():
            raise RunError(f"{name}: is not a regular file; choose another")
        if not (is_ours() or force):
            article = "an" if kind[0] in "aeiou" else "a"
            hint = "" if force is None else ", or add --force to replace it"
            raise RunError(f"{name}: exists and is not {article} {kind} of softmaxce; choose another file{hint}")
    folder = next(parent for parent in (file.parent, *file.absolute().parents) if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        number = errno.EROFS if _is_read_only(folder) else errno.EACCES if folder.is_dir() else errno.ENOTDIR
        raise RunError(f"{name}: cannot be written: {folder}: {os.strerror(number)}")


def _is_read_only(folder: Path) -> bool:
    """Whether a folder is on a read-only file system."""
    return hasattr(os, "statvfs") and bool(os.statvfs(folder).f_flag & os.ST_RDONLY)


@contextlib.contextmanager
def writable(file: Path) -> Iterator[None]:
    """Turns the error that a place cannot be written into a RunError; a full or failing disk stays an OSError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        raise RunError(f"{file}: cannot be written: {error.strerror}") from None


def keep_as(file: Path, other: Path) -> None:
    """Make `other` a second name (hard link) of `file`'s content, atomically. No flush."""
    staged = _temporary(other)
    try:
        os.link(file, staged)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        staged = stage(other, file.read_bytes())  # a file system without hard links
    staged.replace(other)
    with contextlib.suppress(FileNotFoundError):  # there is nothing to remove
        staged.unlink()  # it remains if both were names of one file already


def sha256_of(file: str | os.PathLike[str]) -> str:
    """A regular file's SHA-256, as sha256sum prints it. Raises: OSError as open_file."""
    with open_file(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def make_folder(folder: Path) -> None:
    """Make a folder inside another, if there is none. Raises: RunError if its name is taken, by a link for example."""
    try:
        folder.mkdir()
    except FileExistsError:
        if not stat.S_ISDIR(folder.lstat().st_mode):  # what is written through a link lands elsewhere
            raise RunError(f"{folder}: is a link or a file, not a folder; remove it") from None


def flush_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk (fsync), where its file system can."""
    if hasattr(os, "O_DIRECTORY"):  # Windows cannot open a folder, and needs no flush
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except PermissionError:  # a folder that may be written but not read
            return
        try:
            _flush(descriptor)
        finally:
            os.close(descriptor)


# What a system call answers that a file system does not have: of old CIFS, folders shared with a virtual machine, FUSE.
UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)


def _flush(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


# -- locking ----------------------------------------------------------------------------------------------------------

HOLDER = re.compile(r"process \d{1,20} on [\w.-]{1,255}\n?")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[str]:
    """Lock a folder for this process. The system releases the lock when the process ends, however it ends.

    Yields: a warning if its file system has no locks; else an empty text.
    Raises: RunInUseError, with the process that has the lock, if it is locked already; RunError if its lock is no plain
        file.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield ""
        return
    with os.fdopen(_open_lock(folder / LOCK), "r+b", buffering=0) as stream:
        try:
            # Not flock: worker processes would inherit that lock, and keep it after their parent was killed.
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            message = f"{folder}: is being trained by {_holder(stream)}; wait for it, or end it, and try again"
            raise RunInUseError(message) from None
        except OSError as error:
            if error.errno not in (*UNSUPPORTED, errno.ENOLCK):
                raise
            yield f"{folder}: cannot be locked ({error.strerror}); let no other process train in it"
            return
        if os.fstat(stream.fileno()).st_nlink == 1:  # else its content is another file's too
            stream.truncate(0)
            stream.write(f"process {os.getpid()} on {os.uname().nodename}\n".encode())
        yield ""


def lock_holder(folder: Path) -> str | None:
    """The process that has locked a folder, `process 7 on host`; None if none has, or the system has no such locks."""
    try:
        import fcntl

        with os.fdopen(os.open(folder / LOCK, os.O_RDONLY | NOFOLLOW | NONBLOCK), "rb", buffering=0) as stream:
            try:
                fcntl.lockf(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: others may look at the same time
            except (BlockingIOError, PermissionError):  # it is locked: the answer
                return _holder(stream)
    except (ImportError, OSError):  # Windows; no lock yet; a file system without locks
        return None
    return None


def _holder(stream: BinaryIO | FileIO) -> str:
    text = (stream.read(400) or b"").decode(errors="replace")
    return text.strip() if HOLDER.fullmatch(text) else "another process"


def _open_lock(file: Path) -> int:
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | NOFOLLOW | NONBLOCK, 0o666)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):  # a link, a folder, a socket
            with writable(file):
                raise
    raise RunError(f"{file}: is not a plain file; remove it")
