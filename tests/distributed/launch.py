"""Starts claims.py in processes that form a group, as torchrun would, and collects what they write."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def run_claims(world_size: int, timeout: float = 900) -> list[dict[str, Any]]:
    """What every process says of every claim, by rank."""
    with tempfile.TemporaryDirectory() as folder:
        processes, port = [], str(free_port())
        for rank in range(world_size):
            environment = os.environ | {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "LOCAL_WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(ROOT),
                "SOFTMAXCE_CACHE": str(Path(folder) / "cache"),
            }
            command = [sys.executable, "-m", "tests.distributed.claims", folder]
            processes.append(subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True))
        try:
            ended = [process.communicate(timeout=timeout)[1] for process in processes]
        finally:
            for process in processes:
                process.kill()
        assert not any(process.returncode for process in processes), "\n".join(ended)
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(world_size)]
