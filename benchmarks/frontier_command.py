"""The command as a user types it, several times: accuracy, and time over that of the dense network.

    python -m benchmarks.frontier_command [--network resnet20] [--keeps macs=0.5 latency=0.5 ...] [--runs 5] [--busy 2]
                                          [--quick] [--json FILE]

Each run is `rankwise compress FILE:network FILE:calibration --test FILE:test --keep ...` with no other option, in a new
process with an empty cache of times, on 1,024 images without labels. In the last `--busy` runs another process keeps
every core but one busy. The time is what the command itself says about onnxruntime.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.common import Row, parser, report, start

KEEPS = ("macs=0.5", "macs=0.3", "latency=0.5", "latency=0.4", "latency=0.33")
IMAGES = 1024
FILE = """
import networks

def network():
    return networks.{network}()

def calibration():
    return list(networks.normalise_imagenet(networks.cifar10_lossless("train")[0][:{images}]).split(64))

def test():
    images, labels = networks.cifar10_lossless("test")
    return list(zip(networks.normalise_imagenet(images).split(250), labels.split(250)))
"""


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Other processes that multiply matrices all the time."""
    work = "import torch; torch.set_num_threads(1); x = torch.ones(256, 256)\nwhile True: x @ x"
    others = [subprocess.Popen([sys.executable, "-c", work]) for _ in range(processes)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def run(folder: Path, keep: str) -> Row:
    """One run of the command."""
    command = [
        *(sys.executable, "-m", "rankwise", "compress", "nets.py:network", "nets.py:calibration"),
        *("--test", "nets.py:test", "--samples", str(IMAGES), "--keep", keep, "-o", f"out-{keep}", "--json", "-"),
    ]
    data = Path(os.environ.get("RANKWISE_DATA", Path(__file__).parents[1].parent / "shared" / "data"))
    paths = os.pathsep.join(filter(None, [str(data), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths, "RANKWISE_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        return {"keep": keep, "error": done.stderr.strip().splitlines()[-1][:120]}
    found = json.loads(done.stdout)
    figures, latency = found["figures"], found["plan"]["latency"]
    return {
        "keep": keep,
        "top1": figures["compressed"]["top1"],
        "macs": figures["compressed"]["macs"] / figures["dense"]["macs"],
        "expected": latency["measured"] / latency["dense"],
        "time": 1 / figures["compressed"]["speedup_onnxruntime"]["median"],
    }


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--network", default="resnet20", choices=("resnet20", "resnet32"))
    options.add_argument("--keeps", nargs="+", default=list(KEEPS))
    options.add_argument("--runs", type=int, default=5)
    options.add_argument("--busy", type=int, default=2, help="runs beside busy processes")
    arguments = options.parse_args()
    start(arguments)
    rows = []
    for keep in arguments.keeps:
        for number in range(2 if arguments.quick else arguments.runs):
            beside = number >= arguments.runs - arguments.busy
            with tempfile.TemporaryDirectory() as folder, busy(max(1, (os.cpu_count() or 2) - 1) if beside else 0):
                (Path(folder) / "nets.py").write_text(FILE.format(network=arguments.network, images=IMAGES))
                rows.append({"machine": "busy" if beside else "quiet", **run(Path(folder), keep)})
                print(rows[-1], flush=True)
    report(rows, ("keep", "machine", "top1", "macs", "expected", "time", "error"), arguments.network, arguments.json)


if __name__ == "__main__":
    main()
