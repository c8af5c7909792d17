"""No failure is swallowed: what is caught is named, and told, raised again, or harmless for a reason given here."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Every handler of Exception, by file and function: whose code may raise anything there, and where the error goes.
BROAD = {
    "cli/main.py invoke": "any command may run the user's code; if it was not that, the error goes on",
    "cli/train.py carry_out": "the user's model, loss or augmentation; told with its line, recorded in run.json",
    "softmaxce/bench/contestants.py why_not_compiled": "torch.compile, on anybody's machine; the reason is printed",
    "softmaxce/build.py build_model": "the user's model; told with its line",
    "softmaxce/build.py compile_model": "torch.compile, on anybody's machine; told",
    "softmaxce/cudagraph.py static_step": "the user's model and loss, in a CUDA graph; told, and trained without",
    "softmaxce/data/batches.py __getitem__": "a decode of the user's own source; told with the file",
    "softmaxce/explain/trained.py _own_loss": "the user's loss, which may take class ids alone; told in a note",
    "softmaxce/laws/cost.py measure": "the user's loss; it is what check-loss tells",
    "softmaxce/laws/law.py what_is_wrong": "the user's loss; it is what check-loss tells",
    "softmaxce/losses/fused.py _work": "Triton, on anybody's GPU; PyTorch's operations then do the work",
    "softmaxce/losses/make.py refuse_unfit": "the user's loss; told with its line",
    "softmaxce/memory.py half_that_fits": "the user's model or loss, on a batch tried; that memory ran out is told",
    "softmaxce/registry.py load_object": "importing the user's module; told",
    "softmaxce/registry.py build": "the user's constructor; told with its line",
}

# Every handler that neither raises nor looks at the error, and why nothing is lost.
SILENT = {
    "cli/train.py carry_out: OSError": "run.json on a full disk; the error that filled it is told",
    "softmaxce/bench/clock.py : ImportError": "no resource module on Windows; page faults are then not counted",
    "softmaxce/calibration.py temperature_of: OSError, ValueError, TypeError, KeyError": "refused three lines on",
    "softmaxce/checkpoint.py _settle: RunError": "this copy is not the one; the caller tries another, or tells",
    "softmaxce/checkpoint.py save: OSError": "removing what is half written; the error that left it so is raised",
    "softmaxce/config.py _component: NotStatic": "only the object itself tells its signature; build reads that",
    "softmaxce/config.py named: NotStatic": "the same",
    "softmaxce/data/cache.py _make_room: OSError": "another process has removed it in this moment",
    "softmaxce/data/cache.py key_of: OSError": "a file is gone: nothing is kept, and reading it tells",
    "softmaxce/data/cache.py read: OSError": "nothing is kept; the images are decoded",
    "softmaxce/data/cache.py write: OSError": "removing what is half written; the error that left it so is raised",
    "softmaxce/data/idx.py read_idx: OSError": "torchvision's reader is asked, and tells",
    "softmaxce/data/folder.py _memory_for_images: AttributeError, ValueError": "no sysconf on Windows; 8 GiB",
    "softmaxce/data/sources.py _damaged_idx: DAMAGED": "it looks for the file that cannot be read, and tells it",
    "softmaxce/files.py keep_as: FileNotFoundError": "there is nothing to remove",
    "softmaxce/files.py locked: ImportError": "no lock on Windows",
    "softmaxce/files.py stage: OSError": "removing what is half written; the error that left it so is raised",
    "softmaxce/resume.py find_run: SoftmaxceError": "what cannot be read is not the run that is looked for",
    "softmaxce/laws/cost.py _peak_linux: OSError, StopIteration": "a system that does not count; told as not known",
    "softmaxce/laws/law.py judge: Broken, Flaky": "how hypothesis ends; the verdict is told",
    "softmaxce/losses/cross_entropy.py : ImportError": "no Numba here; PyTorch's operations do the work",
    "softmaxce/losses/cpu.py forward: RuntimeError": "a loss beyond the dtype's largest number is infinite",
    "softmaxce/losses/cross_entropy.py cross_entropy: OverflowError": "ignore_index is refused some lines below",
    "softmaxce/losses/cross_entropy.py forward: IndexError, OverflowError": "the call below refuses it, with the place",
    "softmaxce/memory.py half_that_fits: MemoryRanOutError": "the answer to the attempt; half of it comes next",
    "softmaxce/models/max_pool.py : ImportError": "no Numba here; PyTorch's operations do the work",
    "softmaxce/native.py _compile: RuntimeError": "no folder for the compiled code; it is compiled each time",
    "softmaxce/data/fingerprint.py _contents: OSError": "the fingerprint says it is gone; a batch that needs it, too",
    "softmaxce/data/fingerprint.py _size: OSError": "the same",
    "softmaxce/registry.py takes: NotStatic": "the object itself is asked",
    "softmaxce/registry.py _literal: ValueError": "a default that is no literal; only running the code would tell",
    "softmaxce/registry.py _source_file: ValueError": "a module without a spec; told two lines on",
    "softmaxce/registry.py _type_of_text: SyntaxError": "an annotation that is no type takes any value",
    "softmaxce/report/predictions.py write: ValueError": "JSON has no NaN; null is written",
    "softmaxce/requirements.py parse: ValueError": "told as no requirement",
    "softmaxce/runfolder.py create: FileExistsError": "the next number is tried",
    "softmaxce/runfolder.py read_metrics: FileNotFoundError": "no epoch is done yet",
    "softmaxce/runfolder.py read_metrics: ValueError, RecursionError": "half a line, left by an older version",
    "softmaxce/runs.py read_run: ConfigError": "listed all the same, without what its config says",
    "softmaxce/runs.py _when: ValueError": "no date; the file's own is taken",
    "softmaxce/processors.py _share: OSError, ValueError": "no cgroup v2; all processors may be used",
    "softmaxce/processors.py _share_v1: OSError, ValueError": "no cgroup v1; all processors may be used",
    "softmaxce/runtime.py cpu_flags: OSError": "a system that does not tell them; none are known",
    "softmaxce/runtime.py git_commit: OSError, SubprocessError": "no commit is known",
}


def handlers() -> Iterator[tuple[str, str, ast.AST, list[ast.stmt], str | None]]:
    """(file, function, types, body, the error's name) of every except and every contextlib.suppress."""
    for folder in ("softmaxce", "cli"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            yield from within(str(file.relative_to(ROOT)), "", ast.parse(file.read_text()))


def within(file: str, function: str, tree: ast.AST) -> Iterator[tuple[str, str, ast.AST, list[ast.stmt], str | None]]:
    for node in ast.iter_child_nodes(tree):
        inside = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else function
        if isinstance(node, ast.ExceptHandler):
            yield file, function, node.type or ast.Name("BaseException"), node.body, node.name
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "suppress":
            yield file, function, ast.Tuple(node.args), [], None
        yield from within(file, inside, node)


def names(types: ast.AST) -> list[str]:
    """`Name` of each type, without its module."""
    members = types.elts if isinstance(types, ast.Tuple) else [types]
    return [ast.unparse(member).removeprefix("*").split(".")[-1] for member in members]


def mentions(body: list[ast.stmt], name: str | None) -> bool:
    return any(isinstance(node, ast.Name) and node.id == name for entry in body for node in ast.walk(entry))


def raises(body: list[ast.stmt]) -> bool:
    return any(isinstance(node, ast.Raise) for entry in body for node in ast.walk(entry))


def test_whatever_is_caught_is_named_but_where_others_code_is_called() -> None:
    broad = {f"{file} {function}" for file, function, types, _, _ in handlers() if {"Exception"} & set(names(types))}
    assert broad == set(BROAD)
    for file, function, types, body, _ in handlers():
        if "BaseException" in names(types):
            assert ast.unparse(body[-1]) == "raise", f"{file} {function}"


def test_memory_that_ran_out_is_no_fault_of_the_code_that_is_called() -> None:
    for file, function, types, body, name in handlers():
        if "Exception" in names(types):
            assert mentions(body, "ran_out_of_memory"), f"{file} {function}"
            assert mentions(body, name), f"{file} {function}: the error is neither told nor raised"


def test_no_failure_is_passed_over_but_for_a_reason_given() -> None:
    silent = {
        f"{file} {function}: {', '.join(names(types))}"
        for file, function, types, body, name in handlers()
        if not raises(body) and not mentions(body, name)
    }
    assert silent == set(SILENT)


@pytest.mark.parametrize("module", ["softmaxce.data.decode", "softmaxce.data.sources"])
def test_a_tuple_of_types_names_no_base_class_of_all(module: str) -> None:
    import importlib

    damaged = importlib.import_module(module).DAMAGED
    assert not {Exception, BaseException} & set(damaged)
    assert not any(issubclass(KeyboardInterrupt, kind) for kind in damaged)
