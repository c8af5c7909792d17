"""Kernels: functions compiled by Numba to C functions, and run in the threads that PyTorch's own operations run in.

A kernel's only argument is the address of its job, a ctypes structure of numbers and addresses. The first field of a
job is `next_chunk` and one is `num_chunks`: the threads take the chunks of the work one after the other (dynamic
scheduling).
"""

import contextlib
import ctypes
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
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

from .. import streams, waiting
from ..errors import ran_out_of_memory

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
    it: pip would leave it there, and the remains of a package hide the one that is installed in its place. Damaged
    files there are removed and made again; where nothing can be written, every process compiles for itself.
    """
    executor = ThreadPoolExecutor(1, "softmaxce compiles")
    result = executor.submit(_compile, function, job, fastmath)
    executor.shutdown(wait=False)
    if (
        not _ANNOUNCED.is_set() and sys.stderr is not None and sys.stderr.isatty()
    ):  # elsewhere nobody wonders why it takes seconds
        with contextlib.suppress(TimeoutError):  # it is waited for below, after a line
            return result.result(waiting.ON_TERMINAL)
        if result.running():
            _ANNOUNCED.set()
            streams.line("compiling for this machine, which later runs need not do", err=True)
    return result.result()


def _compile(function: Callable[[Any], None], job: type[ctypes.Structure], fastmath: set[str]) -> Callable[[int], None]:
    signature = types.void(pointer(numba.from_dtype(np.dtype(job))))

    def compiled(folder: str) -> Any:
        with _settings(folder):
            return numba.cfunc(signature, cache=bool(folder), fastmath=fastmath, error_model="numpy")(function)

    with _SETTING:
        folder = _writable_cache_folder()
        for cache_folder in (folder, folder, "") if folder else ("",):
            try:
                kernel = compiled(cache_folder)
                break
            except Exception as error:  # unpickling a damaged cache raises anything; a full disk OSError
                if ran_out_of_memory(error) or not cache_folder:
                    raise
                _remove_cached(cache_folder, function)
    _COMPILED.append(kernel)
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(int(kernel.address or 0))


@contextlib.contextmanager
def _settings(folder: str) -> Iterator[None]:
    """Numba's settings of the process while softmaxce compiles: its cache is `folder`.

    Numba reads the settings in a .numba_config.yaml of the current folder before it compiles; they are ignored.
    """
    settings: Any = numba.config
    before = {name: getattr(settings, name) for name in ("CACHE_DIR", "_config_fname") if hasattr(settings, name)}
    try:
        settings.CACHE_DIR, settings._config_fname = folder, os.devnull
        yield
    finally:
        for name, value in before.items():
            setattr(settings, name, value)


def _writable_cache_folder() -> str:
    """The folder of the cache, made if it is missing; an empty string if nothing can be written there.

    Numba, where it cannot write to its folder, writes beside the source.
    """
    settings: Any = numba.config
    users_folder: str = settings.CACHE_DIR  # $NUMBA_CACHE_DIR
    root = users_folder or user_cache_dir("softmaxce")
    if not users_folder and not Path(root).is_absolute():  # without a home folder it is one in the current folder
        return ""
    folder = _cache_folder(root)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as stream:
            stream.write(bytes(4096))
    except OSError:  # read-only, full, or not a folder: compiling takes longer and needs none
        return ""
    return folder


def _remove_cached(folder: str, function: Callable[[Any], None]) -> None:
    """Remove what is cached of a function: an index (.nbi) and its machine code (.nbc)."""
    for file in Path(folder).glob(f"*/*.{function.__name__}-{function.__code__.co_firstlineno}.*"):
        with contextlib.suppress(OSError):  # another process has removed it
            file.unlink()


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
_ANNOUNCED = threading.Event()  # set once a line has said that compiling takes time
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
