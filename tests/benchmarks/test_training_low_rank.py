"""The benchmark of training for low rank: every technique has settings to try, and the verdict is by means."""

from __future__ import annotations

from benchmarks.training_low_rank import PRESET, TRAINED, TRIED, verdict

from rankwise.formats import get_formats
from rankwise.techniques import RECIPES, get_recipe


def test_every_technique_takes_part_with_as_many_settings() -> None:
    names = {get_recipe(setting).name for settings in TRIED.values() for setting in settings}
    assert names == set(RECIPES) - {"subspace"}  # see benchmarks.subspace
    assert {len(settings) for settings in TRIED.values()} == {3}
    assert set(TRAINED) <= set(TRIED)
    for formats in PRESET.values():
        get_formats(formats)


def test_the_verdict_is_by_the_mean_of_the_seeds() -> None:
    rows = [{"network": "net", "method": name, "gain": gain} for name, gain in [("a", 1.0), ("a", -0.5), ("b", -0.1)]]
    assert verdict(rows) == "net: better than its rival: a +0.25\nnet: not better: b -0.10"
