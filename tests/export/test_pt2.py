"""torch.export files agree with the network, or do not appear; torch.compile needs no file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rankwise import export
from rankwise.formats import FORMATS
from rankwise.network.replacing import replace


def small() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5)).eval()
    replace(model, ["0"], FORMATS["spatial_svd"].build(model[0], (4,), True))
    replace(model, ["4"], FORMATS["svd"].build(model[4], (3,), True))
    return model


@pytest.mark.parametrize("dynamic", [True, False])
def test_a_compressed_network(dynamic: bool, tmp_path: Path) -> None:
    model = small()
    path = export.pt2(model, torch.randn(1, 3, 6, 6), tmp_path / "sub" / "net.pt2", dynamic_batch=dynamic)
    assert [each.name for each in path.parent.iterdir()] == ["net.pt2"]
    again = torch.export.load(path).module()
    for batch in (1, 2, 5) if dynamic else (1,):
        x = torch.randn(batch, 3, 6, 6)
        torch.testing.assert_close(again(x), model(x), rtol=0, atol=1e-6)


class Frozen(nn.Module):
    """Its batch size is a constant of the graph."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1) * 2


def test_what_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.pt2").write_text("the file of before")
    with pytest.raises(ValueError, match=r"constant 2; export with dynamic_batch=False"):
        export.pt2(Frozen(), torch.randn(2, 3), tmp_path / "net.pt2")
    with pytest.raises(ValueError, match=r"off by .* tolerance is -1"):
        export.pt2(small(), torch.randn(2, 3, 6, 6), tmp_path / "net.pt2", tolerance=-1)
    assert (tmp_path / "net.pt2").read_text() == "the file of before"
    with pytest.raises(ValueError, match=r"is a directory; name a file, such as .*model\.pt2"):
        export.pt2(small(), torch.randn(2, 3, 6, 6), tmp_path)
    with pytest.raises(ValueError, match="/dev/null is not a regular file"):
        export.pt2(small(), torch.randn(2, 3, 6, 6), "/dev/null")


def test_torch_compile_takes_the_whole_network() -> None:
    """No part of a chain falls back to Python: `fullgraph` would raise."""
    model, x = small(), torch.randn(2, 3, 6, 6)
    # the compiler's own front end; code generation would need a C++ compiler
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-6)
