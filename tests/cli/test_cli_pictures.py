"""Pictures of every depth and mode: read rightly, or refused with file and fix."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rankwise.inputs import pictures
from rankwise.inputs.data import DataOptions
from rankwise.inputs.loading import load_data

DEEP = np.random.default_rng(0).integers(0, 65536, (5, 6), dtype=np.uint16)
Array = np.ndarray[Any, Any]


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def read(folder: Path, **options: Any) -> torch.Tensor:
    (inputs,) = load_data(str(folder), DataOptions(**options)).inputs
    return inputs


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def write_png(file: Path, pixels: Array, size: tuple[int, int] | None = None) -> None:
    """A PNG of 16 bits, which Pillow writes in gray alone; of another size than its pixels where one is given."""
    colour = {2: 0, 3: 2}[pixels.ndim]
    height, width = size or pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def gray(pixels: Array) -> torch.Tensor:
    return torch.from_numpy(pixels.astype(np.float32)).expand(1, 3, -1, -1)


@pytest.mark.parametrize("name, order", [("a.png", "<u2"), ("a.tif", "<u2"), ("a.tif", ">u2")])
def test_sixteen_bits_are_read_at_their_depth(name: str, order: str, tmp_path: Path) -> None:
    Image.fromarray(DEEP.astype(order)).save(tmp_path / name)
    torch.testing.assert_close(read(tmp_path), gray(DEEP) / 65535)
    torch.testing.assert_close(read(tmp_path, normalise="none"), gray(DEEP))
    torch.testing.assert_close(read(tmp_path, normalise="symmetric"), gray(DEEP) / 65535 * 2 - 1)
    assert read(tmp_path, size=4).unique().numel() > 4
    imagenet = load_data(str(tmp_path), DataOptions(), model="torchvision:resnet18")
    assert "normalised imagenet" in imagenet.prepared


def test_colours_of_sixteen_bits_are_read_as_bytes(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (5, 6, 3), dtype=np.uint16)
    write_png(tmp_path / "a.png", pixels)
    exact = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None] / 65535
    torch.testing.assert_close(read(tmp_path), exact, atol=1 / 255, rtol=0)


def test_bytes_beside_sixteen_bits(tmp_path: Path) -> None:
    Image.fromarray(DEEP).save(tmp_path / "a.png")
    Image.fromarray((DEEP >> 8).astype(np.uint8)).save(tmp_path / "b.png")
    Image.fromarray(DEEP.astype(np.float32) / 65535).save(tmp_path / "c.tif")
    first, second, third = read(tmp_path)
    torch.testing.assert_close(first, gray(DEEP)[0] / 65535)
    torch.testing.assert_close(second, gray(DEEP >> 8)[0] / 255)
    torch.testing.assert_close(third, first)
    assert read(tmp_path, transform="resize=4,gray").shape[1] == 1


def test_floats_are_read_between_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(DEEP.astype(np.float32) / 65535).save(tmp_path / "a.tif")
    torch.testing.assert_close(read(tmp_path), gray(DEEP) / 65535)
    for pixels, found in (
        (DEEP.astype(np.float32), "1083 to 63618"),
        (np.full((2, 2), np.nan, np.float32), "nan to nan"),
    ):
        Image.fromarray(pixels).save(tmp_path / "a.tif")
        with pytest.raises(ValueError, match=rf"a\.tif holds floats from {found}; .*rescale it"):
            read(tmp_path)


def test_whole_numbers_of_thirty_two_bits_have_no_white(tmp_path: Path) -> None:
    Image.fromarray(DEEP.astype(np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif holds whole numbers of 32 bits, from 1083 to 63618.*in 16 bits"):
        read(tmp_path)


def test_palettes_and_transparency_lose_no_colour(tmp_path: Path) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 100, 50, 10, 20, 30])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "a.png", transparency=bytes([0, 128]))
    for index, mode in enumerate(("RGBA", "LA", "CMYK", "1")):
        Image.new(mode, (2, 1)).save(tmp_path / f"{'bcde'[index]}.tif")
    inputs = read(tmp_path, normalise="none")
    assert inputs[0, :, 0].T.tolist() == [[200, 100, 50], [10, 20, 30]]
    assert inputs[1:].flatten(1).amax(1).tolist() == [0, 0, 255, 0]  # no ink at all is white


def test_pictures_are_turned_upright(tmp_path: Path) -> None:
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, :4] = 255  # white on the left
    orientation = Image.Exif()
    orientation[0x0112] = 6  # to be turned by 90 degrees, clockwise
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=orientation)
    inputs = read(tmp_path)
    assert inputs.shape == (1, 3, 8, 4)
    assert inputs[0, 0].mean(1).tolist() == [1.0] * 4 + [0.0] * 4


@pytest.mark.parametrize("limit", [True, False])
def test_a_decompression_bomb(limit: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_png(tmp_path / "a.png", DEEP, size=(20_000, 20_000))
    if not limit:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    found = "400000000 pixels" if limit else "20000 x 20000 pixels"
    with pytest.raises(ValueError, match=rf"a\.png is too large .*{found}.*at most 178,956,970 pixels.*shrink it"):
        read(tmp_path)


def test_many_pixels_are_no_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(DEEP).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)  # 30 pixels: Pillow warns
    assert read(tmp_path).shape == (1, 3, 5, 6)
    monkeypatch.setattr(pictures, "MOST_PIXELS", 20)
    with pytest.raises(ValueError, match=r"a\.png is too large \(6 x 5 pixels\): pictures have at most 20"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.gif", "a.webp", "a.bmp"])
def test_pictures_that_are_cut_short(name: str, tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=rf"{name} is not a picture that can be read, or is cut short"):
        read(tmp_path)
