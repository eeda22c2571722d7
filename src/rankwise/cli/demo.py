"""`rankwise demo`: a small network trained on handwritten digits, then compressed without labels."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options
from .output import Output

if TYPE_CHECKING:
    from torch import Tensor

    from ..inputs.data import Data

DemoOut = Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Folder for the results.")]


def demo(
    out_folder: DemoOut = Path("demo-out"),
    threads: options.Threads = 1,
    json: options.Json = None,
    seed: options.Seed = 0,
    debug: options.Debug = False,
) -> None:
    """Train a small network on scikit-learn's handwritten digits and keep a third of its work. Takes under a minute.

    Example: [bold]rankwise demo -o demo-out[/bold]

    Needs scikit-learn: [bold]pip install 'rankwise\\[demo]'[/bold]. Nothing is downloaded.
    """
    with Output(json, debug=debug, writes=[out_folder]) as out:
        import torch
        from safetensors.torch import save_file

        from .. import demo as digits_demo
        from ..files import replacing
        from ..network.find import find
        from .figures import Timing
        from .steps import Job, finish

        (images, labels), (test_images, test_labels) = digits_demo.digits(seed)
        out.say(f"training a small convolutional network on {len(images)} handwritten digits of 8x8 pixels")
        with out.step("training"):
            network = digits_demo.train(images, labels, seed)
        chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[: digits_demo.CALIBRATION]
        job = Job(
            out=out,
            spec=f"{_short(Path(digits_demo.__file__))}:build",
            network=network,
            sites=find(network, images[:1]),
            data=_in_memory(f"{digits_demo.CALIBRATION} training digits", images[chosen], None),
            test=_in_memory(f"{len(test_images)} digits that training never saw", test_images, test_labels),
            stats=None,
            example=images[:1],
            seed=seed,
        )
        out.say(f"compressing to a third of its MACs with {digits_demo.CALIBRATION} unlabelled digits")
        plan = job.plan({"keep": {"macs": digits_demo.KEEP}, "metric": "input"})
        small = job.factorise(plan, "sequential")
        finish(
            job, small, plan, out_folder, command="demo", timing=Timing.of("auto", threads, digits_demo.LATENCY_BATCH)
        )
        tensors = {"dense": network.state_dict(), "test": {"images": test_images, "labels": test_labels}}
        for name, content in tensors.items():
            with replacing(out_folder / f"{name}.safetensors") as new:
                save_file(content, new)
        out.write_report(out_folder / "report.json")
        program = sys.argv[0] if Path(sys.argv[0]).name == "rankwise" else "rankwise"
        out.say(
            f"all figures: {out_folder / 'report.json'}\n\n"
            "The same by hand, from here on with a network of your own:\n"
            f"  {program} evaluate {job.spec} {out_folder / 'test.safetensors'} "
            f"--weights {out_folder / 'dense.safetensors'} --artifact {out_folder}"
        )


def _short(path: Path) -> Path:
    """The path from here, where it lies below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _in_memory(name: str, images: Tensor, labels: Tensor | None) -> Data:
    from ..inputs.data import Data

    size = 64
    batches = [
        (images[start : start + size], None if labels is None else labels[start : start + size])
        for start in range(0, len(images), size)
    ]
    return Data(
        name=name,
        samples=len(images),
        labelled=labels is not None,
        classes=None,
        prepared="1x8x8, 0..1",
        _passes=lambda: iter(batches),
    )
