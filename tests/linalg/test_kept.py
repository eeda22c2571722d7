"""Results are kept by name, up to a limit."""

from __future__ import annotations

from rankwise.linalg.kept import Kept


def test_first_come_until_the_limit() -> None:
    kept = Kept(100)
    assert kept.place("a", 1).put("first", 60)
    assert not kept.place("a", 2).put("second", 60)
    assert kept.place("a", 3).put("third", 40)
    assert [kept.place("a", number).get() for number in (1, 2, 3, 4)] == ["first", None, "third", None]
    assert kept.size == 100


def test_a_result_takes_the_place_of_an_earlier_one() -> None:
    kept = Kept(100)
    place = kept.place("a")
    assert place.put("first", 80)
    assert place.put("second", 90)
    assert (place.get(), kept.size) == ("second", 90)
    assert not place.put("third", 101)
    assert (place.get(), kept.size) == (None, 0)
