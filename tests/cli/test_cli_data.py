"""DATA: every kind of source, transforms and normalisation, and what is said where it cannot be used."""

from __future__ import annotations

import struct
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from rankwise.inputs.data import Data, DataOptions, example_input
from rankwise.inputs.loading import load_data
from rankwise.inputs.pixels import IMAGENET, parse_normalise, parse_transform
from rankwise.inputs.sources import from_arrays

# Importing it here would fail beside a CPU torch: that needs the shim.
needs_torchvision = pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is not installed")


def everything(data: Data) -> tuple[torch.Tensor, list[int] | None]:
    pairs = list(data.pairs)
    labels = None if pairs[0][1] is None else torch.cat([labels for _, labels in pairs]).tolist()
    return torch.cat([inputs for inputs, _ in pairs]), labels


def noise(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def write_pictures(folder: Path, number: int, size: tuple[int, int] = (6, 5)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(number):
        Image.fromarray(noise(*size, 3)).save(folder / f"{index}.png")


def test_class_folders_in_sorted_order_give_labels(tmp_path: Path) -> None:
    for name in ("zebra", "ant", "moth"):
        write_pictures(tmp_path / name, 2)
    (tmp_path / "ant" / "._0.png").write_bytes(b"not a picture")
    (tmp_path / "notes").mkdir()
    data = load_data(str(tmp_path), DataOptions(batch=4))
    inputs, labels = everything(data)
    assert inputs.shape == (6, 3, 6, 5)
    assert labels == [0, 0, 1, 1, 2, 2]
    assert (data.samples, data.labelled, data.classes) == (6, True, 3)
    torch.testing.assert_close(inputs[0], torch.from_numpy(noise(6, 5, 3)).permute(2, 0, 1) / 255)


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    write_pictures(tmp_path, 3)
    data = load_data(str(tmp_path), DataOptions())
    assert everything(data)[1] is None
    assert not data.labelled
    assert [len(batch) for batch in data.inputs] == [3]


@pytest.mark.parametrize("channels, expected", [("nhwc", (7, 3, 6, 5)), ("nchw", (7, 3, 6, 5)), ("nhw", (7, 1, 6, 5))])
def test_arrays_of_bytes_get_channels_first(tmp_path: Path, channels: str, expected: tuple[int, ...]) -> None:
    shape = {"nhwc": (7, 6, 5, 3), "nchw": (7, 3, 6, 5), "nhw": (7, 6, 5)}[channels]
    np.savez(tmp_path / "a.npz", images=noise(*shape), labels=np.arange(7)[:, None])
    inputs, labels = everything(load_data(str(tmp_path / "a.npz"), DataOptions()))
    assert inputs.shape == expected
    assert inputs.max() <= 1
    assert labels == list(range(7))


def test_splits_of_an_array_file(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "mnist.npz",
        x_test=noise(2, 4, 4),
        y_test=np.arange(2),
        x_train=noise(3, 4, 4),
        y_train=np.arange(3),
    )
    file = str(tmp_path / "mnist.npz")
    assert load_data(file, DataOptions()).samples == 3
    assert load_data(file, DataOptions(), default_split="test").samples == 2
    assert everything(load_data(file, DataOptions(split="test")))[1] == [0, 1]


def test_safetensors_and_floats_stay_as_they_are(tmp_path: Path) -> None:
    inputs = torch.randn(5, 4)
    save_file({"inputs": inputs, "labels": torch.arange(5)}, tmp_path / "a.safetensors")
    read, labels = everything(load_data(str(tmp_path / "a.safetensors"), DataOptions()))
    assert torch.equal(read, inputs)
    assert labels == list(range(5))


def test_samples_are_chosen_by_the_seed(tmp_path: Path) -> None:
    save_file({"x": torch.arange(100.0)[:, None]}, tmp_path / "a.safetensors")
    file = str(tmp_path / "a.safetensors")
    first = everything(load_data(file, DataOptions(seed=1), samples=10))[0]
    assert len(first) == 10
    assert torch.equal(first, everything(load_data(file, DataOptions(seed=1), samples=10))[0])
    assert not torch.equal(first, everything(load_data(file, DataOptions(seed=2), samples=10))[0])


def test_a_function_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def once():\n"
        "    return ((torch.full((4, 2), float(i)), torch.full((4,), i)) for i in range(3))\n"
        "def words():\n"
        "    return [{'ids': torch.zeros(4, 7, dtype=torch.long)}] * 2\n"
        "def dataset():\n"
        "    return torch.utils.data.TensorDataset(torch.randn(9, 2), torch.arange(9))\n"
        "def nothing():\n"
        "    return []\n"
    )
    once = load_data(f"{tmp_path}/mine.py:once", DataOptions(), samples=6)
    for _ in range(2):
        assert everything(once)[1] == [0, 0, 0, 0, 1, 1]
    words = load_data(f"{tmp_path}/mine.py:words", DataOptions(), samples=5)
    assert [len(batch["ids"]) for batch in words.inputs] == [4, 1]
    assert words.example()["ids"].shape == (1, 7)
    dataset = load_data(f"{tmp_path}/mine.py:dataset", DataOptions(batch=4))
    assert everything(dataset)[1] == list(range(9))
    with pytest.raises(ValueError, match="no batches"):
        load_data(f"{tmp_path}/mine.py:nothing", DataOptions())
    with pytest.raises(ValueError, match="do not apply"):
        load_data(f"{tmp_path}/mine.py:words", DataOptions(size=8))
    with pytest.raises(ValueError, match=r"no function .onse.; it has: once"):
        load_data(f"{tmp_path}/mine.py:onse", DataOptions())


@needs_torchvision
def test_a_torchvision_data_set_with_a_train_argument(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split, number in (("train", 4), ("t10k", 3)):
        header = struct.pack(">IIII", 2051, number, 5, 6)
        (raw / f"{split}-images-idx3-ubyte").write_bytes(header + noise(number, 5, 6).tobytes())
        labels = bytes(range(number))
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, number) + labels)
    data = load_data("torchvision:MNIST", DataOptions(root=tmp_path))
    inputs, labels_read = everything(data)
    torch.testing.assert_close(inputs[:, 0], torch.from_numpy(noise(4, 5, 6)) / 255)
    assert labels_read == [0, 1, 2, 3]
    assert load_data("torchvision:MNIST", DataOptions(root=tmp_path), default_split="test").samples == 3
    with pytest.raises(ValueError, match="the splits train and test, not 'extra'"):
        load_data("torchvision:MNIST", DataOptions(root=tmp_path, split="extra"))


@needs_torchvision
def test_a_torchvision_data_set_with_a_split_argument(tmp_path: Path) -> None:
    folder = tmp_path / "fgvc-aircraft-2013b" / "data"
    (folder / "images").mkdir(parents=True)
    (folder / "variants.txt").write_text("A300\nDC-8\n")
    for split, names in (("train", ("1", "2")), ("test", ("3",))):
        (folder / f"images_variant_{split}.txt").write_text("".join(f"{name} DC-8\n" for name in names))
        for name in names:
            Image.fromarray(noise(20, 30, 3)).save(folder / "images" / f"{name}.jpg")
    data = load_data("torchvision:FGVCAircraft", DataOptions(root=tmp_path, size=16))
    inputs, labels = everything(data)
    assert inputs.shape == (2, 3, 16, 16)
    assert labels == [1, 1]
    assert load_data("torchvision:FGVCAircraft", DataOptions(root=tmp_path, split="test")).samples == 1


@needs_torchvision
def test_a_torchvision_data_set_that_needs_more(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"annFile.*FILE\.py:FUNCTION"):
        load_data("torchvision:CocoDetection", DataOptions(root=tmp_path))


def test_transform_makes_sizes_equal(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a", 2, (20, 30))
    write_pictures(tmp_path / "b", 2, (30, 20))
    with pytest.raises(ValueError, match=r"different sizes .* --size"):
        everything(load_data(str(tmp_path), DataOptions()))
    assert everything(load_data(str(tmp_path), DataOptions(size=16)))[0].shape == (4, 3, 16, 16)
    shape = everything(load_data(str(tmp_path), DataOptions(transform="resize=10x12,crop=8x10,gray")))[0].shape
    assert shape == (4, 1, 8, 10)


def test_resize_is_that_of_pillow() -> None:
    pixels = noise(37, 53, 3)
    (resize,) = parse_transform("resize=16")
    mine = resize(torch.from_numpy(pixels).permute(2, 0, 1))
    assert mine.shape == (3, 16, 22)
    pillow = np.array(Image.fromarray(pixels).resize((22, 16), Image.Resampling.BILINEAR))
    assert (mine.permute(1, 2, 0).numpy().astype(int) - pillow).__abs__().max() <= 1


def test_normalise() -> None:
    stored = torch.from_numpy(noise(2, 3, 4, 4))
    unit = stored.float() / 255
    torch.testing.assert_close(parse_normalise("none")(stored), stored.float())
    torch.testing.assert_close(parse_normalise("unit")(stored), unit)
    torch.testing.assert_close(parse_normalise("symmetric")(stored), unit * 2 - 1)
    mean, std = (torch.tensor(figures)[:, None, None] for figures in IMAGENET)
    torch.testing.assert_close(parse_normalise("imagenet")(stored), (unit - mean) / std)
    torch.testing.assert_close(parse_normalise("mean=0.1,0.2,0.3;std=2,2,2")(stored)[:, 1], (unit[:, 1] - 0.2) / 2)
    torch.testing.assert_close(parse_normalise("symmetric")(unit), unit * 2 - 1)
    with pytest.raises(ValueError, match="3 channels"):
        parse_normalise("imagenet")(stored[:, :1])
    for text in ("imagnet", "mean=0.5", "mean=0.5;std=0", "mean=1,2;std=1", "mean=a;std=1"):
        with pytest.raises(ValueError, match="--normalise"):
            parse_normalise(text)


def test_auto_means_imagenet_for_torchvision_models(tmp_path: Path) -> None:
    write_pictures(tmp_path, 1, (300, 400))
    data = load_data(str(tmp_path), DataOptions(), model="torchvision:resnet18")
    assert everything(data)[0].shape == (1, 3, 224, 224)
    assert "resize=256,crop=224" in data.prepared
    assert "imagenet" in data.prepared


@pytest.mark.parametrize("text", ["resize", "resize=0", "crop=ten", "flip", "resize=1x2x3", "gray=1", "crop=-4"])
def test_a_transform_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ValueError, match="the steps are"):
        parse_transform(text)


def test_data_that_cannot_be_used(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="holds no pictures"):
        load_data(str(empty), DataOptions())
    write_pictures(tmp_path / "both" / "class", 1)
    write_pictures(tmp_path / "both", 1)
    with pytest.raises(ValueError, match="one or the other"):
        load_data(str(tmp_path / "both"), DataOptions())
    (tmp_path / "broken.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match="cut short"):
        load_data(str(tmp_path / "broken.npz"), DataOptions())
    np.savez(tmp_path / "labels.npz", images=noise(3, 4, 4), labels=np.zeros((3, 2)))
    with pytest.raises(ValueError, match="3 class numbers"):
        load_data(str(tmp_path / "labels.npz"), DataOptions())
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.jpg").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"x\.jpg is not a picture"):
        load_data(str(tmp_path / "bad"), DataOptions())
    with pytest.raises(ValueError, match="no such folder or file"):
        load_data(str(tmp_path / "nowhere"), DataOptions())
    with pytest.raises(ValueError, match="there is no file"):
        load_data(str(tmp_path / "nowhere.npz"), DataOptions())


def test_example_input() -> None:
    assert example_input("3,8,9").shape == (1, 3, 8, 9)
    for text in ("", "3,a", "3,0,4"):
        with pytest.raises(ValueError, match="--input-shape"):
            example_input(text)


def test_names_of_arrays_in_capitals(tmp_path: Path) -> None:
    images = np.zeros((6, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "capitals.npz", X=images, Y=np.arange(6))
    source = from_arrays(tmp_path / "capitals.npz", None)
    assert source.labelled
    assert source.get(3)[1] == 3
