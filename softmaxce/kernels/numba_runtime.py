"""Loops that a processor runs: compiled by Numba to C functions, run in the threads that PyTorch's own work runs in.

A job is a ctypes structure that says what to do, numbers and addresses alone. Its first field is `next_part` and one is
`parts`: the work is shared out in so many parts, each of which is taken by whichever thread asks first.
"""

import ctypes
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic as _intrinsic
from platformdirs import user_cache_dir

intrinsic: Any = _intrinsic
pointer: Any = types.CPointer

SHARE = 1 << 14  # numbers that are worth a thread: waking one takes as long as some thousands
PART = 1 << 12  # numbers in a part, at least
PARTS_A_THREAD = 4  # who is done first takes another; for each the cores pass a line of memory to and fro, for 0.2 us


def compiled(function: Callable[[Any], None], job: type[ctypes.Structure], fastmath: set[str]) -> Callable[[int], None]:
    """A function of a pointer to a job as a C function of its address. Calling it releases Python's lock.

    It is compiled in a thread of its own, where no ctrl-C arrives: interrupted half-way, Numba may be of no more use to
    the process. Who waits for it is interrupted at once.

    The machine code is kept in the user's cache (or in $NUMBA_CACHE_DIR), not beside the source, where numba would put
    it: pip would leave it behind, and what is left of a package hides the one that is installed in its place.
    """
    executor = ThreadPoolExecutor(1, "softmaxce compiles")
    result = executor.submit(_compile, function, job, fastmath)
    executor.shutdown(wait=False)
    return result.result()


def _compile(function: Callable[[Any], None], job: type[ctypes.Structure], fastmath: set[str]) -> Callable[[int], None]:
    signature = types.void(pointer(numba.from_dtype(np.dtype(job))))
    settings: Any = numba.config
    with _SETTING:  # of the process, so that no thread takes another's setting for the user's
        asked = settings.CACHE_DIR
        try:
            settings.CACHE_DIR = _cache_folder(asked or user_cache_dir("softmaxce"))
            found = numba.cfunc(signature, cache=True, fastmath=fastmath, error_model="numpy")(function)
        except RuntimeError:  # there is no folder to keep it in
            found = numba.cfunc(signature, fastmath=fastmath, error_model="numpy")(function)
        finally:
            settings.CACHE_DIR = asked
    _KEPT.append(found)
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(int(found.address or 0))


@cache
def _cache_folder(root: str) -> str:
    """The folder in `root` for the machine code of these sources, compiled by these versions.

    Numba compiles a function again when the file that defines it has changed, but not when a helper that it calls has
    changed in another file. So every state of the sources has a folder of its own.
    """
    digest = blake2b(" ".join((numba.__version__, llvmlite.__version__, np.__version__)).encode(), digest_size=8)
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return str(Path(root, f"kernels-{digest.hexdigest()}"))


_SETTING = threading.RLock()
_KEPT: list[Any] = []  # machine code lives as long as its object


@intrinsic  # type: ignore[untyped-decorator]
def at(typing: Any, address: Any, like: Any) -> Any:
    """The pointer to numbers like this that an address is."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return pointer(like)(address, like), code


@intrinsic  # type: ignore[untyped-decorator]
def take_part(typing: Any, job_: Any) -> Any:
    """Take the next part of a job, whichever thread asks. Returns its number."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        whole = context.get_value_type(types.int64)
        next_part = builder.bitcast(arguments[0], whole.as_pointer())  # the first field
        return builder.atomic_rmw("add", next_part, whole(1), "monotonic")

    return types.int64(job_), code


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(typing: Any, array: Any, index: Any) -> Any:
    """Have the cache line that holds this number on its way, to be read soon."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = ir.IntType(32)
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        place = builder.bitcast(builder.gep(arguments[0], [arguments[1]]), byte)
        builder.call(function, [place, number(0), number(3), number(1)])  # to read; all caches; data
        return context.get_dummy_value()

    return types.void(array, index), code


def parts_of(numbers: int, most: int, *, whatever_the_threads: bool = False) -> int:
    """How many parts to share a job of so many numbers out in, at most `most`; one, where it is too small to share.

    With `whatever_the_threads` it is the same for any number of them, as a result that is summed up by parts needs it:
    enough for eight, and for more where the parts are large anyway.
    """
    if numbers < 2 * SHARE:
        return 1
    threads = max(8, numbers // (64 * PART)) if whatever_the_threads else torch.get_num_threads()
    return max(1, min(most, numbers // PART, PARTS_A_THREAD * threads))


def run(function: Callable[[int], None], job: Any, numbers: int) -> None:
    """Do a job of so many numbers, in as many threads as PyTorch uses, as it has parts, and as are worth it."""
    threads = min(torch.get_num_threads(), job.parts, numbers // SHARE)
    if threads < 2:
        function(ctypes.addressof(job))
    elif team := _team():
        team(function, ctypes.addressof(job), threads, 0)
    else:
        _run_in_pool(function, job, threads)


def _run_in_pool(function: Callable[[int], None], job: Any, threads: int) -> None:
    """Do a job in this thread and others. Whatever interrupts it is raised when all have left the job's memory."""
    others: list[Future[None]] = []
    try:
        pool = _pool()
        for _ in range(threads - 1):
            others.append(pool.submit(function, ctypes.addressof(job)))
        function(ctypes.addressof(job))
    finally:
        _wait_for_all(others)


def _wait_for_all(others: list["Future[None]"]) -> None:
    try:
        wait(others)
    except BaseException:  # a ctrl-C
        _wait_for_all(others)
        raise


@cache
def _team() -> Callable[..., None] | None:
    """Runs a C function in the threads that PyTorch's own operations run in, where those are OpenMP's.

    Between two operations they do not sleep but wait for the next, so other threads would have to share the cores with
    them. A fork leaves them behind.
    """
    if os.getpid() != _PROCESS:
        return None
    team: Any = getattr(ctypes.CDLL(torch._C.__file__), "GOMP_parallel", None)
    if team is not None:
        team.argtypes, team.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    return team  # type: ignore[no-any-return]


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "softmaxce")


_PROCESS = os.getpid()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_team.cache_clear)
    os.register_at_fork(after_in_child=_pool.cache_clear)
    # No fork while another thread compiles: the child would have the compiler's locks, held by nobody.
    os.register_at_fork(before=_SETTING.acquire, after_in_parent=_SETTING.release, after_in_child=_SETTING.release)
