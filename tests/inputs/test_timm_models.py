"""timm: models: what is read, how pictures are prepared, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import rankwise as rw
from rankwise.inputs.data import DataOptions
from rankwise.inputs.loading import load_data, load_example
from rankwise.inputs.models import load_artifact, load_model
from rankwise.inputs.torchvision_shim import allow_torchvision

allow_torchvision()
timm = pytest.importorskip("timm")

TINY = {"img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 1, "num_heads": 2, "num_classes": 3}
PREPARED = {"input_size": (3, 32, 32), "crop_pct": 0.8, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **TINY, pretrained_cfg_overlay=PREPARED)
    made = tmp_path_factory.mktemp("timm") / "tiny"
    timm.models.save_for_hf(model, str(made), model_args=TINY, safe_serialization=True)
    return made


def test_from_a_folder_with_its_weights(folder: Path) -> None:
    model, again = load_model(f"timm:{folder}"), load_model(f"timm:{folder}")
    assert type(model).__name__ == "VisionTransformer"
    assert not model.training
    x = load_example(None, None, DataOptions(), f"timm:{folder}", model)
    assert x.shape == (1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(x), again(x))


def test_pictures_are_prepared_as_its_configuration_says(folder: Path, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    (tmp_path / "pictures").mkdir()
    image.fromarray(pixels).save(tmp_path / "pictures" / "a.png")
    model = load_model(f"timm:{folder}")
    data = load_data(str(tmp_path / "pictures"), DataOptions(), network=model, model=f"timm:{folder}")
    assert "resize=40:bicubic,crop=32x32" in data.prepared
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    wanted = transform(image.fromarray(pixels))
    got = next(iter(data.inputs))[0]
    assert (got - wanted).abs().mean() < 0.02  # Pillow rounds between its two passes


def test_a_compressed_network_needs_the_configuration_alone(folder: Path, tmp_path: Path) -> None:
    model, x = load_model(f"timm:{folder}"), torch.randn(16, 3, 32, 32)
    small, _ = rw.compress(model, [x], keep={"params": 0.8}, method="one-shot")
    rw.save(small, tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(load_artifact(f"timm:{folder}", tmp_path / "out")(x), small(x))


def test_weights_come_from_the_cache_or_are_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection was opened"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"not in the local cache.*hf download timm/\S+\), or give --weights FILE"):
        load_model("timm:test_vit")
    torch.manual_seed(0)
    model = load_model("timm:test_vit", trained=False)
    torch.save(model.state_dict(), tmp_path / "own.pth")
    loaded = load_model("timm:test_vit", tmp_path / "own.pth")
    assert torch.equal(loaded.state_dict()["norm.weight"], model.state_dict()["norm.weight"])


@pytest.mark.parametrize(
    "name, words",
    [
        ("vit_tinny_patch16_224", r"timm has no model 'vit_tinny_patch16_224'; near names: vit_tiny_patch16"),
        ("./nowhere", "there is no such folder"),
    ],
)
def test_names_that_are_wrong(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_model(f"timm:{name}")


def test_a_folder_without_a_configuration_or_weights(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json"):
        load_model(f"timm:{tmp_path}")
    (tmp_path / "config.json").write_text('{"architecture": "test_vit"}')
    with pytest.raises(ValueError, match="has no weights"):
        load_model(f"timm:{tmp_path}")
