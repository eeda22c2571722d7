"""What figures were measured on: samples are held out if none was used before, compared by content."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..inputs.data import Data
    from ..running.seen import Seen

# Use of samples -> what messages call them.
USES = {
    "calibration": "calibration samples",
    "search": "samples that a search was judged on",
    "training": "samples of the training",
}


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Samples that figures come from, compared with those that were used before.

    Attributes:
        name: the data's.
        held_out: whether it is known that none was used.
        same: number of shared samples by use; uses that share none are left out.
        text: for people.
    """

    name: str
    held_out: bool
    same: dict[str, int] = field(default_factory=dict)
    text: str

    @classmethod
    def of(cls, data: Data, seen: Mapping[str, Seen], fix: str = "name others with --test") -> Compared:
        """Compare the samples of `data` with those seen, by use; `fix` says what to do about samples used before.

        Without the use "calibration" it is not known which samples calibrated.
        """
        from ..running.seen import digests_of

        if not data.real:
            what = "no samples, so that accuracy and agreement are not known (name some with --test)"
            return cls(name=data.name, held_out=False, text=f"measured on {what}: {data.name}")
        digests = list(digests_of(data.inputs))
        overlaps = {use: each.overlap(digests) for use, each in seen.items()}
        same = {use: overlap for use, overlap in overlaps.items() if overlap.same}
        held_out = not same and "calibration" in seen and all(each.checked for each in overlaps.values())
        if held_out:
            others = " and ".join(f"{each.samples:,} {USES[use]}" for use, each in seen.items() if each.samples)
            compared = f"none among the {others}" if others else "no others were used"
            text = f"measured on held-out samples: {data.name} ({len(digests):,}, {compared})"
        elif same:
            shares = ", ".join(f"{overlap} are {USES[use]}" for use, overlap in same.items())
            text = f"measured on {data.name}: {shares} ({fix})"
            if overlaps.get("calibration") and overlaps["calibration"].same == len(digests) and len(same) == 1:
                text = f"measured on the calibration samples themselves ({fix}): {data.name}"
        else:
            text = f"measured on {data.name}; whether its samples were used for calibration is not known"
        return cls(name=data.name, held_out=held_out, same={use: each.same for use, each in same.items()}, text=text)

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return {"measured_on": self.name, "held_out": self.held_out, "same_samples": self.same}
