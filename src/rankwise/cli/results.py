"""The end of every command that makes a network: write it, measure it, show it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..figures.held_out import Compared
from ..figures.judging import Judging
from ..figures.measured import Figures, Timing, figures_of, measure
from ..inputs.data import Data
from .output import Output

if TYPE_CHECKING:
    from torch import nn

    from ..plan import Plan
    from ..running.seen import Seen
    from .job import Job

UNTIMED = Timing(engines=(), threads=1, batch=1)


@dataclass(frozen=True, kw_only=True)
class Result:
    """Where a network is written, and how it is measured; `data` gives the figures, `seen` is what was used before."""

    out: Output
    folder: Path
    plan: Plan | None = None
    seen: Mapping[str, Seen]
    data: Data
    timing: Timing
    judging: Judging
    storage: str = "plain"

    def save(self, small: nn.Module) -> None:
        """Write the network before it is measured: a problem with test data must not cost the work so far."""
        self._write(small)
        if self.plan is not None:
            self.plan.save(self.folder / "plan.yaml")

    def untimed(self, networks: Mapping[str, nn.Module]) -> Figures:
        """Figures of networks that are not the result, without latency."""
        return measure(self.out, networks, self.data, timing=UNTIMED, judging=self.judging)

    def measured(self, dense: nn.Module, small: nn.Module, told: Mapping[str, Any] | None = None) -> Figures:
        """Figures of both networks; they and what is `told` are written into the artifact."""
        from ..artifact import as_stored, stored_bytes

        networks = {"dense": dense, "compressed": as_stored(small, self.storage)}
        figures = measure(self.out, networks, self.data, timing=self.timing, judging=self.judging)
        kept = {**figures_of(figures, self.data), "timing": self.timing.document(), **(told or {})}
        self._write(small, figures=kept, storage=self.storage)
        figures["compressed"]["bytes"] = stored_bytes(self.folder)
        return figures

    def _write(self, small: Any, *, storage: str = "plain", **how: Any) -> None:
        """Write the artifact; of a network of transformers, plain weights are read by `from_pretrained` too."""
        from ..artifact import save
        from ..inputs.hugging_face import is_pretrained
        from ..surgery.folding import folds_of

        save(small, self.folder, plan=self.plan, seen=self.seen, storage=storage, **how)
        if is_pretrained(small):
            if storage == "plain" and not folds_of(small):
                from ..integrations.transformers import write_config

                write_config(small, self.folder)
            else:
                (self.folder / "config.json").unlink(missing_ok=True)  # it would speak of weights that are not there

    def document(self, figures: Figures, seed: int) -> dict[str, Any]:
        """For `--json`."""
        return {
            "artifact": self.folder,
            "figures": figures,
            **self.judged().document(),
            "timing": self.timing.document(),
            "seed": seed,
        }

    def show(self, figures: Figures, lines: Iterable[str]) -> None:
        """Show the figures, further lines, and where the artifact is."""
        from .tables import figures_table

        self.out.show(figures_table(figures, self.timing.batch))
        for line in lines:
            self.out.say(line)
        self.out.say(f"artifact: {self.folder}  (rankwise.json, model.safetensors; loading does not need plan.yaml)")
        if (self.folder / "config.json").is_file():
            self.out.say("from_pretrained reads it too, after import rankwise.integrations.transformers")

    def judged(self) -> Compared:
        """What the figures were measured on."""
        return Compared.of(self.data, self.seen)


def finish(
    job: Job, small: nn.Module, plan: Plan, folder: Path, *, command: str, timing: Timing, storage: str = "plain"
) -> None:
    """Write the artifact, measure it, and show the result."""
    from .tables import plan_table

    out, session = job.out, job.session
    result = Result(
        out=out,
        folder=folder,
        plan=plan,
        seen=job.seen(),
        data=job.measured_on,
        timing=timing,
        judging=job.judging,
        storage=storage,
    )
    result.save(small)
    figures = result.measured(job.dense, small)
    out.show(plan_table(plan, session.sites, out.console.width))
    if plan.latency is not None:
        out.say(f"latency: {plan.latency}")
    out.say("")
    result.show(figures, [f"\n{result.judged().text}"])
    out.result(command, {**result.document(figures, session.sampling.seed), "plan": plan.to_dict()})
