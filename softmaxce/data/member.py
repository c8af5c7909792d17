"""A member of a tar file, as the name of an image file. Needs no torch."""

import errno
import io
import os
from pathlib import Path
from typing import BinaryIO

from ..files import open_file


class Member(str):
    """The name of a member, `train-000.tar/cat/1.jpg`, and where its bytes are. It is never a path that is opened.

    Attributes:
        shard: the tar file.
        offset: of its first byte in it.
        size: in bytes.
        window: the images of a window are shuffled together; 0 of all if every image is shuffled with every other.
    """

    __slots__ = ("offset", "shard", "size", "window")

    shard: str
    offset: int
    size: int
    window: int

    def __new__(cls, name: str, shard: str, offset: int, size: int, window: int = 0) -> "Member":
        """The member `name` of a shard."""
        member = super().__new__(cls, f"{shard}/{name}")
        member.shard, member.offset, member.size, member.window = shard, offset, size, window
        return member

    @property
    def name(self) -> str:
        """In its shard."""
        return self.removeprefix(f"{self.shard}/")

    def __reduce__(self) -> tuple[object, ...]:
        return Member, (self.name, self.shard, self.offset, self.size, self.window)

    def read(self, limit: int) -> bytes:
        """The first `limit` bytes at most. Raises: OSError if the shard cannot be read, or ends before the member."""
        with open_file(self.shard) as stream:
            stream.seek(self.offset)
            content = stream.read(min(limit, self.size))
        if len(content) < min(limit, self.size):
            raise OSError(errno.EIO, "it is cut off: its shard is shorter than when it was indexed", str(self))
        return content


def open_image_file(file: str, limit: int) -> BinaryIO:
    """An image file, or a member of a tar file, opened for reading.

    Raises: OSError; ValueError if it has more than `limit` bytes.
    """
    if isinstance(file, Member):
        size = file.size
        stream: BinaryIO = io.BytesIO(file.read(size if size <= limit else 0))
    else:
        stream = open_file(file)
        size = os.fstat(stream.fileno()).st_size
    if size > limit:
        stream.close()
        raise ValueError(f"it has more than {limit:,} bytes")
    return stream


def first_bytes(file: str, count: int) -> bytes:
    """The first bytes of an image file, or of a member of a tar file; at most `count`. Raises: OSError."""
    if isinstance(file, Member):
        return file.read(count)
    with open_file(file) as stream:
        return stream.read(count)


def size_of(file: str) -> int:
    """The bytes of an image file, or of a member of a tar file. Raises: OSError."""
    return file.size if isinstance(file, Member) else Path(file).stat().st_size


def status_of(file: str) -> tuple[int, ...]:
    """What changes if a file's content does: its size, inode, and times of change; of a member its location too.

    Raises: OSError.
    """
    path, location = (file.shard, (file.offset, file.size)) if isinstance(file, Member) else (file, ())
    status = os.stat(path)  # noqa: PTH116 - of many thousand files
    return (status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, *location)
