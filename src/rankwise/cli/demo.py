"""`rankwise demo`: a small network trained on handwritten digits, then compressed without labels."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from .command import command
from .options.base import Run, plain
from .options.measuring import Threads

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..inputs.data import Data
    from .job import Job
    from .output import Output

DemoOut = Annotated[Path, plain("-o --out DIR", "Folder for the results.")]


@command
def demo(run: Run, out_folder: DemoOut = Path("demo-out"), threads: Threads = 1) -> None:
    """Train a small network on scikit-learn's handwritten digits and keep a third of its work. Takes under a minute.

    Example: [bold]rankwise demo -o demo-out[/bold]

    Needs scikit-learn: [bold]pip install 'rankwise\\[demo]'[/bold]. Nothing is downloaded.
    """
    with run.output(writes=[out_folder]) as out:
        from safetensors.torch import save_file

        from .. import demo as digits_demo
        from ..figures.measured import Timing
        from ..files import replacing
        from .results import finish

        (images, labels), test = digits_demo.digits(run.seed)
        out.say(f"training a small convolutional network on {len(images)} handwritten digits of 8x8 pixels")
        with out.step("training"):
            network = digits_demo.train(images, labels, run.seed)
        job = _job(out, network, images, test, run.seed)
        out.say(f"compressing to a third of its MACs with {digits_demo.CALIBRATION} unlabelled digits")
        plan = job.session.plan({"keep": {"macs": digits_demo.KEEP}})
        small = job.factorise(plan)
        finish(
            job, small, plan, out_folder, command="demo", timing=Timing.of("auto", threads, digits_demo.LATENCY_BATCH)
        )
        tensors = {"dense": network.state_dict(), "test": dict(zip(("images", "labels"), test, strict=True))}
        for name, content in tensors.items():
            with replacing(out_folder / f"{name}.safetensors") as new:
                save_file(content, new)
        out.write_report(out_folder / "report.json")
        program = sys.argv[0] if Path(sys.argv[0]).name == "rankwise" else "rankwise"
        out.say(
            f"all figures: {out_folder / 'report.json'}\n\n"
            "The same by hand, from here on with a network of your own:\n"
            f"  {program} evaluate {_short(Path(digits_demo.__file__))}:build {out_folder / 'test.safetensors'} "
            f"--weights {out_folder / 'dense.safetensors'} --artifact {out_folder}"
        )


def _job(out: Output, network: nn.Module, images: Tensor, test: tuple[Tensor, Tensor], seed: int) -> Job:
    """A job with the network and some digits without labels."""
    import torch

    from ..demo import CALIBRATION
    from ..inputs.statistics import StatisticsFile
    from ..network.find import find
    from ..session import Session
    from ..statistics.sampling import Sampling
    from .job import Job

    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:CALIBRATION]
    data = _in_memory(f"{CALIBRATION} training digits", images[chosen], None)
    sites = find(network, images[:1])
    session = Session(
        model=network,
        sites=sites,
        example=images[:1],
        data=data.inputs,
        sampling=Sampling(seed=seed),
        progress=out.track,
    )
    return Job(
        out=out,
        session=session,
        dense=network,
        data=data,
        test=_in_memory(f"{len(test[0])} digits that training never saw", *test),
        file=StatisticsFile.of(None, sites.fingerprint, "demo"),
    )


def _short(path: Path) -> Path:
    """The path relative to the working directory if it is inside."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _in_memory(name: str, images: Tensor, labels: Tensor | None) -> Data:
    from ..inputs.data import Data

    parts = images.split(64)
    batches = list(zip(parts, [None] * len(parts) if labels is None else labels.split(64), strict=True))
    return Data(
        name=name,
        samples=len(images),
        labelled=labels is not None,
        classes=None,
        prepared="1x8x8, 0..1",
        _passes=lambda: iter(batches),
    )
