from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankwise import export

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")


class Tokens(nn.Module):
    """Token numbers and a mask of the same length; a table of positions may end at `longest`."""

    def __init__(self, longest: int | None = None) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(30, 16), nn.Linear(16, 30)
        self.places = nn.Embedding(longest, 16) if longest else None

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.table(ids)
        if self.places is not None:
            x = x + self.places(torch.arange(ids.shape[1]))
        return self.head(x * mask.unsqueeze(-1))


class Skip(nn.Module):
    """Only even picture sizes fit together."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 8, 3, 2, 1), nn.ConvTranspose2d(8, 3, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(F.relu(self.down(x)))


class Fixed(nn.Module):
    """Takes one picture size alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 8 * 8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(1))


def pictures(*shape: int) -> tuple[Tensor, ...]:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(0)),)


def texts(samples: int, length: int) -> tuple[Tensor, ...]:
    ids = torch.randint(0, 30, (samples, length), generator=torch.Generator().manual_seed(0))
    return ids, (ids > 5).float()


# Network, example, other inputs that the file has to run at.
OPEN: dict[str, tuple[Callable[[], nn.Module], Any, list[Any]]] = {
    "lengths": (Tokens, texts(2, 16), [texts(3, 24), texts(1, 7)]),
    "lengths up to an end": (lambda: Tokens(16), texts(2, 16), [texts(3, 5), texts(1, 12)]),
    "picture sizes": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3)),
        pictures(2, 3, 16, 16),
        [pictures(1, 3, 20, 12), pictures(5, 3, 9, 31)],
    ),
    "pictures, pooled": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)),
        pictures(1, 3, 12, 12),
        [pictures(2, 3, 10, 21)],
    ),
    "even pictures": (Skip, pictures(2, 3, 16, 16), [pictures(1, 3, 24, 40)]),
}


def run(path: Path, inputs: Any) -> Tensor:
    if path.suffix == ".pt2":
        return torch.export.load(path).module()(*inputs)  # type: ignore[no-any-return]
    session = onnxruntime.InferenceSession(str(path))
    names = [each.name for each in session.get_inputs()]
    return torch.tensor(session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})[0])


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
@pytest.mark.parametrize("case", OPEN)
def test_further_axes_are_open_and_right(case: str, suffix: str, tmp_path: Path) -> None:
    build, example, others = OPEN[case]
    torch.manual_seed(0)
    model = build().eval()
    path = (export.onnx if suffix == "onnx" else export.pt2)(model, example, tmp_path / f"net.{suffix}")
    for other in others:
        torch.testing.assert_close(run(path, other), model(*other), rtol=1e-4, atol=1e-5)


def test_axes_that_stay_closed_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "rankwise"):
        path = export.onnx(Fixed(), pictures(1, 3, 8, 8), tmp_path / "net.onnx")
    assert [each.shape[1:] for each in onnxruntime.InferenceSession(str(path)).get_inputs()] == [[3, 8, 8]]
    for axis in (1, 2, 3):
        assert f"axis {axis} of x stays closed" in caplog.text


def test_what_the_engine_cannot_leave_open_stays_closed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64, 5)).eval()
    with caplog.at_level(logging.INFO, "rankwise"):
        path = export.onnx(model, pictures(1, 3, 8, 8), tmp_path / "net.onnx")
    other = pictures(4, 3, 8, 8)
    torch.testing.assert_close(run(path, other), model(*other), rtol=1e-4, atol=1e-5)
    assert "stays closed" in caplog.text or "no axis except the batch is open" in caplog.text


def test_axes_by_name(tmp_path: Path) -> None:
    model = OPEN["picture sizes"][0]().eval()
    path = export.onnx(model, *OPEN["picture sizes"][1], tmp_path / "net.onnx", dynamic_axes={"input": [3]})
    (shape,) = [each.shape for each in onnxruntime.InferenceSession(str(path)).get_inputs()]
    assert [isinstance(side, str) for side in shape] == [True, False, False, True]
    other = pictures(3, 3, 16, 25)
    torch.testing.assert_close(run(path, other), model(*other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"dynamic_axes": "none"}, {"dynamic_batch": False}])
def test_sizes_are_fixed_where_asked(options: Any, tmp_path: Path) -> None:
    path = export.onnx(Tokens().eval(), texts(2, 16), tmp_path / "net.onnx", **options)
    for each in onnxruntime.InferenceSession(str(path)).get_inputs():
        assert each.shape[1] == 16
        assert isinstance(each.shape[0], int) == ("dynamic_batch" in options)


@pytest.mark.parametrize(
    ("axes", "text"),
    [
        ("all", 'give "auto", "none"'),
        ({"y": [1]}, "no input 'y'; the inputs are x"),
        ({"x": [4]}, r"\(2, 3, 8, 8\) and no axis 4"),
        ({"x": [2]}, "dynamic_axes"),
    ],
)
def test_axes_that_cannot_be_open_are_refused(axes: Any, text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=text):
        export.onnx(Fixed(), pictures(2, 3, 8, 8), tmp_path / "net.onnx", dynamic_axes=axes)
    assert not list(tmp_path.iterdir())
