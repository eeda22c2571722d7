"""Samples by number, held-out ones apart, and random changes of pictures."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankwise.training import Samples, augmentation
from rankwise.training.augment import crop, flip, mixup

pytestmark = pytest.mark.usefixtures("one_thread")


class Inputs(torch.utils.data.Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((2,), float(index))


def test_batches_of_any_kind_are_read_by_number() -> None:
    numbers = torch.tensor([3, 0])
    x = torch.arange(10.0).view(5, 2)
    mask = torch.eye(4)
    for data, expected in (
        (x, x[numbers]),
        ([x[:3], x[3:]], x[numbers]),
        (Inputs(), torch.tensor([[3.0, 3.0], [0.0, 0.0]])),
    ):
        assert torch.equal(Samples.of(data).batch(numbers)[0], expected)
    both = Samples.of([{"x": x[:3], "mask": mask}, {"x": x[3:], "mask": mask}]).batch(numbers)[0]
    assert torch.equal(both["x"], x[numbers])
    assert torch.equal(both["mask"], mask)
    pair = Samples.of([(x[:3], x[:3] + 1), (x[3:], x[3:] + 1)]).batch(numbers)[0]
    assert torch.equal(pair[1], x[numbers] + 1)


def test_labels_and_preparation() -> None:
    samples = Samples.of(
        torch.arange(4, dtype=torch.uint8)[:, None], labels=[5, 6, 7, 8], prepare=lambda x: x.float() / 2
    )
    inputs, labels = samples.batch(torch.tensor([3, 1]))
    assert inputs.tolist() == [[1.5], [0.5]]
    assert labels is not None
    assert labels.tolist() == [8, 6]


def test_errors() -> None:
    with pytest.raises(ValueError, match="3 labels for 4 samples"):
        Samples.of(torch.zeros(4, 1), labels=[1, 2, 3])
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 4\)"):
        Samples.of([torch.zeros(2, 3), torch.zeros(2, 4)])
    with pytest.raises(ValueError, match="more than 10 bytes"):
        Samples.of([torch.zeros(2, 3)], cache_limit=10)
    with pytest.raises(ValueError, match="none is left"):
        Samples.of(torch.zeros(1, 3)).split(0.5, 0)
    with pytest.raises(ValueError, match="held_out is 1"):
        Samples.of(torch.zeros(4, 3)).split(1, 0)


@given(st.integers(2, 300), st.floats(0.01, 0.9), st.integers(0, 5))
def test_split_is_a_partition_by_the_seed(count: int, held_out: float, seed: int) -> None:
    samples = Samples.of(torch.zeros(count, 1))
    if min(max(round(held_out * count), 1), 100) >= count:
        return
    train, held = samples.split(held_out, seed, most=100)
    assert torch.equal(torch.cat([train, held]).sort().values, torch.arange(count))
    assert 1 <= len(held) <= 100
    assert torch.equal(held, samples.split(held_out, seed, most=100)[1])


def test_flip_mirrors_some_pictures() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 3, 8, 8)
    y = flip(x)
    mirrored = (y == x.flip(3)).flatten(1).all(1)
    assert bool((mirrored | (y == x).flatten(1).all(1)).all())
    assert 16 < int(mirrored.sum()) < 48


def test_crop_shifts_by_at_most_an_eighth() -> None:
    """A single bright pixel in the middle moves by up to two of sixteen in either direction, and all shifts occur."""
    torch.manual_seed(0)
    x = torch.zeros(400, 1, 16, 24)
    x[:, :, 8, 12] = 1
    places = crop(x).flatten(1).argmax(1)
    rows, columns = places // 24 - 8, places % 24 - 12
    assert set(rows.tolist()) == set(range(-2, 3))
    assert set(columns.tolist()) == set(range(-3, 4))


def test_mixup_lies_between_neighbours() -> None:
    torch.manual_seed(0)
    x = torch.eye(4).view(4, 4, 1, 1)
    y = mixup(x).view(4, 4)
    torch.testing.assert_close(y.sum(1), torch.ones(4))
    assert bool((y.diagonal() >= 0.5).all())
    assert bool((y.roll(1, 1).diagonal() > 0).all())


def test_augmentation_by_name() -> None:
    assert augmentation(None) is None
    own = torch.neg
    assert augmentation(own) is own
    change = augmentation("flip, crop,mixup")
    assert change is not None
    x = torch.randn(4, 3, 8, 8)
    torch.manual_seed(1)
    first = change(x)
    torch.manual_seed(1)
    assert torch.equal(first, change(x))
    with pytest.raises(ValueError, match="'spin' is not one of flip, crop, mixup"):
        augmentation("flip,spin")
    with pytest.raises(ValueError, match="for pictures"):
        change(torch.zeros(4, 3))
