"""Pictures as tensors `(C, H, W)`: bytes, 16-bit numbers, or floats on the 0..1 scale."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
# Half a gigabyte in RGB. A larger picture is not an input of a network, but a mistake or an attack.
MOST_PIXELS = 178_956_970


def read_picture(file: Path) -> Tensor:
    """Read a picture in three channels, turned upright as its EXIF orientation says.

    Transparent pixels keep the colour stored below them, as in torchvision.

    Raises:
        ValueError: naming the file, if it is not a picture, is cut short, has too many pixels, or numbers with no
            known white.
    """
    from ..running.calling import DataError

    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("reading pictures needs Pillow: pip install 'rankwise[vision]'") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # comes at half of MOST_PIXELS
            opened = Image.open(file)
        with opened as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise Image.DecompressionBombError(f"{picture.width} x {picture.height} pixels")
            pixels = pixels_of(_upright(picture))
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{file} is too large ({error}): pictures have at most {MOST_PIXELS:,} pixels; shrink it or leave it out"
        ) from error
    except DataError as error:
        raise DataError(f"{file} {error}") from None
    except Exception as error:  # decoders raise anything on damaged files
        first = str(error) or type(error).__name__
        raise DataError(f"{file} is not a picture that can be read, or is cut short: {first}") from error
    return pixels if len(pixels) == 3 else pixels.expand(3, -1, -1).contiguous()


def pixels_of(picture: Any) -> Tensor:
    """The pixels of a Pillow picture, gray in one channel, else three; a ValueError for numbers with no known white."""
    import numpy as np
    import torch

    if picture.mode == "I" or picture.mode.startswith("I;16"):
        return _deep(np.array(picture), of_png=picture.format == "PNG" or picture.mode != "I")
    if picture.mode == "F":
        return _floating(np.array(picture))
    if picture.mode not in ("L", "RGB"):
        if "transparency" in picture.info:  # through RGBA, or Pillow warns
            picture = picture.convert("RGBA")
        picture = picture.convert("RGB")
    pixels = np.array(picture)
    return torch.from_numpy(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1).copy())


def _deep(pixels: Any, of_png: bool) -> Tensor:
    import numpy as np
    import torch

    from ..running.calling import DataError

    low, high = int(pixels.min()), int(pixels.max())
    if not of_png or low < 0 or high > 65535:
        raise DataError(
            f"holds whole numbers of 32 bits, from {low} to {high}, and which of them is white is not known; save it "
            "in 16 bits (0 to 65535)"
        )
    return torch.from_numpy(pixels.astype(np.uint16)[None])


def _floating(pixels: Any) -> Tensor:
    import numpy as np
    import torch

    from ..running.calling import DataError

    low, high = float(pixels.min()), float(pixels.max())
    if not 0 <= low <= high <= 1:  # also true if one is NaN
        raise DataError(
            f"holds floats from {low:g} to {high:g}; in pictures of floats 0 is black and 1 is white: "
            "rescale it, or write a FILE.py:FUNCTION"
        )
    return torch.from_numpy(pixels.astype(np.float32)[None])


def _upright(picture: Any) -> Any:
    from PIL import ExifTags, ImageOps

    turned = picture.getexif().get(ExifTags.Base.Orientation, 1) != 1
    return ImageOps.exif_transpose(picture) if turned else picture
