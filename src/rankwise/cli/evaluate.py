"""`rankwise evaluate`: measure a network, or a compressed one beside it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from .command import command
from .options.base import Run, plain
from .options.data import Network, Samples
from .options.language import LanguageJudged
from .options.measuring import Figured, Judged
from .output import Output

if TYPE_CHECKING:
    from torch import nn

Artifact = Annotated[Path | None, plain("--artifact DIR", "A compressed network to measure beside the dense one.")]
Stored = Annotated[bool, plain("--stored", "Show what is stored of each factorised layer: non-zeros, bytes, indices.")]
Roofline = Annotated[
    bool, plain("--roofline", "Show how close each layer comes to what this machine can do, for --latency-batch.")
]


@command
def evaluate(
    network: Network,
    data: Samples,
    judged: Judged,
    language: LanguageJudged,
    timing: Figured,
    run: Run,
    artifact: Artifact = None,
    stored: Stored = False,
    roofline: Roofline = False,
) -> None:
    """Measure parameters, MACs, bytes, latency, accuracy (with labels), and how close the dense network is.

    Example: [bold]rankwise evaluate nets.py:build test.npz --weights net.pth --artifact out/[/bold]

    Language models: [bold]rankwise evaluate hf:my-model/ other.txt --artifact out/ --context 512 --generate 32[/bold]
    """
    with run.output() as out:
        figured, judging, told = timing.timing(), judged.judging(), language.judged()
        from ..artifact import read, stored_bytes
        from ..factorisation.check import check_loaded
        from ..figures.held_out import Compared
        from ..figures.measured import measure
        from .loading import load_networks
        from .tables import figures_table, language_table, storage_table

        networks = load_networks(out, network, artifact, run.seed, folds=True)
        dense, last = networks["dense"], networks[list(networks)[-1]]
        with out.step("reading the data"):
            test = data.load(data.data, dense, network.model, seed=run.seed, samples=data.samples, split="test")
        if artifact is not None:
            check_loaded(dense, last, test.example(1))
        network.warn(out)
        out.say(f"data: {test.name}, {test.prepared}")
        judging.check(dense, test)
        told.check(networks, network.model, test)
        figures = measure(out, networks, test, timing=figured, judging=judging)
        result = {"figures": figures, "measured_on": test.name, "timing": figured.document(), "seed": run.seed}
        if artifact is not None:
            figures["compressed"]["bytes"] = stored_bytes(artifact)
            compared = Compared.of(test, read(artifact).seen, fix="name other DATA")
            result |= compared.document()
        out.show(figures_table(figures, figured.batch))
        if told.asked:
            result["language"] = told.measure(out, networks, test, network.model, data.samples, figured.threads)
            out.show(language_table(told.lines, len(networks)))
        if artifact is not None:
            out.say(f"\n{compared.text}")
        if stored:
            from ..evaluate import storage

            kept = storage(last)
            out.show(storage_table(kept))
            result["stored"] = asdict(kept)
        if roofline:
            result["roofline"] = _roofline(out, last, test.example(figured.batch), timing.threads)
        out.result("evaluate", result)


def _roofline(out: Output, network: nn.Module, example: Any, threads: int) -> dict[str, Any]:
    """How close each layer comes to what the machine can do, shown and for `--json`."""
    from ..evaluate import roofline
    from .tables import roofline_table

    with out.step("timing layers"):
        lines = roofline(network, example, threads)
    out.show(roofline_table(lines))
    return asdict(lines)
