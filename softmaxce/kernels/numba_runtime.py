"""Kernels: functions compiled by Numba to C functions, and run in the threads that PyTorch's own operations run in.

A kernel's only argument is the address of its job, a ctypes structure of numbers and addresses. The first field of a
job is `next_chunk` and one is `num_chunks`: the threads take the chunks of the work one after the other (dynamic
scheduling).
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

NUMBERS_PER_THREAD = 1 << 14  # fewer are not worth a thread: waking one takes as long as some thousands
MIN_CHUNK = 1 << 12  # numbers in a chunk
CHUNKS_PER_THREAD = 4  # a thread that is done early takes another; each costs 0.2 us, for the counter's cache line


def compile_kernel(
    function: Callable[[Any], None], job: type[ctypes.Structure], fastmath: set[str]
) -> Callable[[int], None]:
    """A function of a pointer to a job, as a C function of its address. Calling it releases the GIL.

    It is compiled in a thread of its own, where no ctrl-C arrives: Numba, interrupted half-way, may be unusable for the
    rest of the process. The thread that waits here is interrupted at once.

    The machine code is cached in the user's cache folder (or $NUMBA_CACHE_DIR), not beside the source, where Numba puts
    it: pip would leave it there, and the remains of a package hide the one that is installed in its place.
    """
    executor = ThreadPoolExecutor(1, "softmaxce compiles")
    result = executor.submit(_compile, function, job, fastmath)
    executor.shutdown(wait=False)
    return result.result()


def _compile(function: Callable[[Any], None], job: type[ctypes.Structure], fastmath: set[str]) -> Callable[[int], None]:
    signature = types.void(pointer(numba.from_dtype(np.dtype(job))))
    settings: Any = numba.config
    with _SETTING:  # the setting is the process's: no thread may take another's value for the user's
        users_folder = settings.CACHE_DIR
        try:
            settings.CACHE_DIR = _cache_folder(users_folder or user_cache_dir("softmaxce"))
            kernel = numba.cfunc(signature, cache=True, fastmath=fastmath, error_model="numpy")(function)
        except RuntimeError:  # no cache folder can be written: compile without one
            kernel = numba.cfunc(signature, fastmath=fastmath, error_model="numpy")(function)
        finally:
            settings.CACHE_DIR = users_folder
    _COMPILED.append(kernel)
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(int(kernel.address or 0))


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
_COMPILED: list[Any] = []  # machine code lives as long as its object


@intrinsic  # type: ignore[untyped-decorator]
def pointer_to(typing: Any, address: Any, like: Any) -> Any:
    """An address as a pointer to numbers of the type of `like`."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return pointer(like)(address, like), code


@intrinsic  # type: ignore[untyped-decorator]
def next_chunk(typing: Any, job_: Any) -> Any:
    """Take the next chunk of a job, atomically. Returns its number, which is at least num_chunks if none is left."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        whole = context.get_value_type(types.int64)
        counter = builder.bitcast(arguments[0], whole.as_pointer())  # the first field
        return builder.atomic_rmw("add", counter, whole(1), "monotonic")

    return types.int64(job_), code


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(typing: Any, array: Any, index: Any) -> Any:
    """Start to load the cache line that holds this number, which will be read soon."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = ir.IntType(32)
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        start = builder.bitcast(builder.gep(arguments[0], [arguments[1]]), byte)
        builder.call(function, [start, number(0), number(3), number(1)])  # to read; all caches; data
        return context.get_dummy_value()

    return types.void(array, index), code


def num_chunks(numbers: int, most: int, *, fixed: bool = False) -> int:
    """Into how many chunks a job of so many numbers is split: at most `most`, and one if it is too small to split.

    With `fixed` it does not depend on the number of threads, as a sum over the chunks must not: it is then enough for
    eight threads, and for more where the chunks are large anyway.
    """
    if numbers < 2 * NUMBERS_PER_THREAD:
        return 1
    threads = max(8, numbers // (64 * MIN_CHUNK)) if fixed else torch.get_num_threads()
    return max(1, min(most, numbers // MIN_CHUNK, CHUNKS_PER_THREAD * threads))


def run(function: Callable[[int], None], job: Any, numbers: int) -> None:
    """Do a job of so many numbers, in as many threads as PyTorch uses, as it has chunks, and as are worth it."""
    threads = min(torch.get_num_threads(), job.num_chunks, numbers // NUMBERS_PER_THREAD)
    if threads < 2:
        function(ctypes.addressof(job))
    elif parallel := _openmp_parallel():
        parallel(function, ctypes.addressof(job), threads, 0)
    else:
        _run_in_pool(function, job, threads)


def _run_in_pool(function: Callable[[int], None], job: Any, threads: int) -> None:
    """Do a job in this thread and others. An interruption is raised only when all of them are done with its memory."""
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
def _openmp_parallel() -> Callable[..., None] | None:
    """OpenMP's GOMP_parallel of PyTorch's own runtime: it runs a C function in the threads of PyTorch's operations.

    Between two operations these do not sleep but spin, so other threads would have to share the cores with them. None,
    where torch has no such function, and after a fork, which does not copy the threads: a pool is then used.
    """
    library = getattr(torch._C, "__file__", None)
    if os.getpid() != _PROCESS or library is None:
        return None
    parallel: Any = getattr(ctypes.CDLL(library), "GOMP_parallel", None)
    if parallel is not None:
        parallel.argtypes, parallel.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    return parallel  # type: ignore[no-any-return]


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "softmaxce")


_PROCESS = os.getpid()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_openmp_parallel.cache_clear)
    os.register_at_fork(after_in_child=_pool.cache_clear)
    # No fork while another thread compiles: the child would inherit the compiler's locks, locked for ever.
    os.register_at_fork(before=_SETTING.acquire, after_in_parent=_SETTING.release, after_in_child=_SETTING.release)
