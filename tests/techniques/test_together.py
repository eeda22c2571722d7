"""Two processes train one network by a technique, and end with the same one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys, torch
from torch import nn
import rankwise as rw
from rankwise.techniques import train_low_rank
torch.manual_seed(0)
x = torch.randn(120, 12)
y = x[:, :4].argmax(1)
model = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 4))
small, report = train_low_rank(
    model, x, y, technique=sys.argv[1], only="0", keep={"params": 0.8}, rule="knapsack", epochs=4, batch=18, rate=0.01,
    calibration=64,
)
torch.save([report.plan["0"].ranks, dict(small.state_dict())], f"{sys.argv[2]}/{torch.distributed.is_initialized()}"
           f"{__import__('os').environ['RANK']}.pt")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["maestro:strength=0.1,every=3", "dynamical:every=3,start=0.8", "learning_compression:every=3"]
)
def test_processes_agree(name: str, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, name, str(tmp_path)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [process.wait(300) for process in processes] == [0, 0]
    import torch

    (one, first), (two, second) = (torch.load(file) for file in sorted(tmp_path.glob("*.pt")))
    assert one == two
    assert all(torch.equal(value, second[key]) for key, value in first.items())
