"""What a run takes from the machine: precision, processors, memory."""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from softmaxce.build import build_run
from softmaxce.runtime import device
from softmaxce.runtime.device import choose_precision
from softmaxce.runtime.memory import total_memory
from softmaxce.runtime.processors import processors
from softmaxce.training.loop import fit

from ..helpers import Softmaxce, config

CPU = torch.device("cpu")
HERE = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@pytest.mark.parametrize(
    ("flags", "precision"),
    [("fma avx2", "float32"), ("avx512f avx512_bf16", "bf16"), ("amx_bf16 amx_tile", "bf16"), ("", "float32")],
)
def test_auto_is_bf16_where_the_processor_has_instructions_for_it(
    flags: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "cpu_flags", lambda: frozenset(flags.split()))
    assert choose_precision("auto", CPU) == precision
    assert [choose_precision(asked, CPU) for asked in ("float32", "bf16", "fp16")] == ["float32", "bf16", "fp16"]


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="the processor's instructions are read on Linux")
def test_the_flags_are_those_that_torch_finds() -> None:
    capability = torch.backends.cpu.get_cpu_capability()
    assert ("avx2" in device.cpu_flags()) >= (capability in ("AVX2", "AVX512"))
    assert ("avx512f" in device.cpu_flags()) >= (capability == "AVX512")


def test_the_run_records_the_precision_that_auto_came_to(softmaxce: Softmaxce, small: Path, tmp_path: Path) -> None:
    done = softmaxce("train", "--config", "small.yaml", "--set", "precision=auto", "--output", "run")
    assert done.returncode == 0, done.stderr
    used = choose_precision("auto", CPU)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["environment"]["precision"] == used
    assert f", {used}\n" in done.stderr
    again = softmaxce("train", "--config", "small.yaml", "--set", f"precision={used}", "--output", "same")
    assert again.returncode == 0, again.stderr
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1] for name in ("run", "same")]
    assert json.loads(lines[0])["train"] == json.loads(lines[1])["train"]  # to the last bit


@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({}, HERE),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, HERE),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        # a job's share is its parent's where that is less
        (
            {
                "proc/self/cgroup": "0::/jobs/mine\n",
                "sys/fs/cgroup/jobs/cpu.max": "90000 100000\n",
                "sys/fs/cgroup/jobs/mine/cpu.max": "max 100000\n",
            },
            1,
        ),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "6400000 100000\n"}, HERE),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, HERE),
        # a batch system's job, in the tree of cgroup v1
        (
            {
                "proc/self/cgroup": "4:memory:/\n3:cpu,cpuacct:/slurm/job_1\n",
                "sys/fs/cgroup/cpu/slurm/job_1/cpu.cfs_quota_us": "100000\n",
                "sys/fs/cgroup/cpu/slurm/job_1/cpu.cfs_period_us": "100000\n",
            },
            1,
        ),
        ({"proc/self/cgroup": "nonsense", "sys/fs/cgroup/cpu.max": "nonsense"}, HERE),
    ],
)
def test_processors_are_what_affinity_and_the_cgroup_allow(files: dict[str, str], count: int, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert processors(tmp_path) == count


MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("files", "size"),
    [
        ({}, MACHINE),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, MACHINE),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "1000000\n"}, 1000000),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{2 * MACHINE}\n"}, MACHINE),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/memory.high": "4096\n"}, 4096),
        # a container, in which /proc names the group as the machine does
        ({"proc/self/cgroup": "0::/docker/1f\n", "sys/fs/cgroup/memory.max": "4096\n"}, 4096),
        ({"proc/self/cgroup": "5:memory:/docker/1f\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "4096\n"}, 4096),
        ({"proc/self/cgroup": "5:memory:/a\n", "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "4096\n"}, 4096),
        ({"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, MACHINE),
    ],
)
def test_memory_is_what_the_machine_has_and_the_cgroup_allows(files: dict[str, str], size: int, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert total_memory(tmp_path) == size


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or HERE < 2, reason="needs two processors to give one up")
def test_a_run_on_one_processor_uses_one_thread() -> None:
    code = (
        "import os, torch\nos.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])\n"
        "from softmaxce.runtime.device import share_processors\ntorch.set_num_threads(2)\nshare_processors()\n"
        "print(torch.get_num_threads())"
    )
    for given, threads in (({}, "1"), ({"OMP_NUM_THREADS": "2"}, "2")):  # the user's word counts
        environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"} | given
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == threads


@pytest.mark.skipif(sys.platform != "linux", reason="asks GNU's OpenMP, which torch ships on Linux")
@pytest.mark.parametrize("limits", [{"OMP_THREAD_LIMIT": "1"}, {"OMP_DYNAMIC": "true"}])
def test_a_run_counts_only_on_threads_that_openmp_will_start(limits: dict[str, str]) -> None:
    # With $OMP_DYNAMIC a region gets fewer threads on a busy machine; where it gets fewer than torch counts on, a
    # convolution hangs or leaves a part of its result unwritten.
    code = (
        "import ctypes, torch\nfrom softmaxce.runtime.device import share_processors\nshare_processors()\n"
        "openmp = ctypes.CDLL(torch._C.__file__)\n"
        "print(torch.get_num_threads() <= openmp.omp_get_thread_limit() and not openmp.omp_get_dynamic())"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "2"} | limits
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


FAULTS = """\
import resource, sys, torch
resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))
from softmaxce.build import build_run
from softmaxce.config import reader, yamlfile
text = '''
epochs: 1
device: cpu
keep_memory: {keep}
data: {{name: synthetic, train: 64, test: 8, size: 64, batch_size: 64}}
model: linear
optimizer: {{name: sgd, lr: 0.1}}
'''
build_run(reader.check(yamlfile.parse(text, 'text')))
def batch():
    return [torch.ones(12_000_000) for _ in range(2)]
for _ in range(3):
    batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    batch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def has_glibc() -> bool:
    return sys.platform == "linux" and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")


@pytest.mark.skipif(not has_glibc(), reason="only glibc can be told")
def test_freed_memory_is_reused_without_page_faults_unless_the_config_or_a_limit_turns_that_off() -> None:
    faults = {}
    for keep, limit in (("true", -1), ("false", -1), ("true", 1 << 36)):
        code = FAULTS.format(keep=keep, limit=limit)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        faults[keep, limit] = int(done.stdout)
    assert faults["true", -1] < faults["false", -1] / 10
    assert faults["true", -1] < faults["true", 1 << 36] / 10  # pieces that are kept would count as taken


def test_keep_memory_changes_no_bit_and_may_change_when_resuming(
    softmaxce: Softmaxce, small: Path, tmp_path: Path
) -> None:
    for keep in ("true", "false"):
        done = softmaxce("train", "-c", "small.yaml", "--set", f"keep_memory={keep}", "--output", keep, "--quiet")
        assert done.returncode == 0, done.stderr
    lines = [json.loads((tmp_path / keep / "metrics.jsonl").read_text().splitlines()[-1]) for keep in ("true", "false")]
    assert [line["train"] for line in lines] == [lines[0]["train"]] * 2
    arguments = ("--set", "keep_memory=false", "--epochs", "3", "--resume", "true", "--quiet")
    done = softmaxce("train", "-c", "small.yaml", *arguments)
    assert done.returncode == 0, done.stderr


def test_a_compiled_model_trains_to_eager_figures_within_a_thousandth() -> None:
    torch.compiler.reset()
    # Whole batches alone: another size is another compilation.
    sizes = {"data__train": 128, "data__test": 32, "data__validation": 32}
    runs = [build_run(config(compile=on, model="lenet", epochs=1, **sizes)) for on in (False, True)]
    figures = []
    for run in runs:
        torch.manual_seed(2)
        (epoch,) = fit(run)
        figures.append(epoch.train.loss)
    assert figures[1] == pytest.approx(figures[0], rel=1e-3)
    assert list(runs[0].model.state_dict()) == list(runs[1].model.state_dict())  # the same checkpoint
