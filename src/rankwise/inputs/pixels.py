"""From stored pictures to network inputs: `--transform`, `--size` and `--normalise`.

Shapes: C channels, H height, W width, B batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

WHITE = {"uint8": 255, "uint16": 65535}  # type of the stored pixels -> the number that is white
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
MODES = ("bilinear", "bicubic")
TRANSFORM_HELP = "resize=256 (shorter side), resize=240x320, resize=256:bicubic, crop=224 (centre), crop=192x256, gray"
NORMALISE_HELP = (
    'imagenet, unit (0..1), symmetric (-1..1), none, or "mean=0.5,0.5,0.5;std=0.25,0.25,0.25" (on the 0..1 scale)'
)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a transform: `resize`, `crop` or `gray`, and its size; one number is the shorter side.

    Attributes:
        mode: how `resize` interpolates, one of `MODES`.
    """

    name: str
    size: tuple[int, ...] = ()
    mode: str = MODES[0]

    def __str__(self) -> str:
        """As `--transform` writes it."""
        size = "=" + "x".join(map(str, self.size)) if self.size else ""
        return f"{self.name}{size}{f':{self.mode}' if self.mode != MODES[0] else ''}"

    def __call__(self, picture_CHW: Tensor) -> Tensor:
        """Apply the step to one picture, keeping its dtype."""
        if self.name == "gray":
            return _gray(picture_CHW)
        return _resize(picture_CHW, self.size, self.mode) if self.name == "resize" else _crop(picture_CHW, self.size)


def parse_transform(text: str | None, size: int | None = None) -> tuple[Step, ...]:
    """The steps of `--transform`, or of `--size`: resize the shorter side, then take the middle square."""
    if text is not None and size is not None:
        raise ValueError(f"--size {size} and --transform {text!r} say the same thing twice; give one of them")
    if size is not None:
        text = f"resize={size},crop={size}"
    return tuple(_parse_step(part.strip(), text) for part in text.split(",")) if text else ()


def _parse_step(part: str, whole: str) -> Step:
    name, _, value = part.partition("=")
    value, _, mode = value.partition(":")
    mode = mode or MODES[0]
    try:
        size = tuple(int(side) for side in value.split("x")) if value else ()
    except ValueError:
        size = (0,)
    right = len(size) in (1, 2) and min(size) > 0 if name in ("resize", "crop") else name == "gray" and not value
    if not right or mode not in (MODES if name == "resize" else MODES[:1]):
        raise ValueError(f"--transform {whole!r}: cannot read {part!r}; the steps are {TRANSFORM_HELP}")
    return Step(name=name, size=size, mode=mode)


def _resize(picture: Tensor, size: tuple[int, ...], mode: str) -> Tensor:
    from torch.nn import functional as F

    height, width = picture.shape[-2:]
    if len(size) == 1:
        # The longer side rounds down, as in torchvision, whose recipes users repeat.
        short, long = size[0], size[0] * max(height, width) // min(height, width)
        size = (short, long) if height <= width else (long, short)
    if size == (height, width):
        return picture
    large = F.interpolate(picture[None].float(), size=size, mode=mode, antialias=True)[0]
    return _stored_as(large, picture)


def _crop(picture: Tensor, size: tuple[int, ...]) -> Tensor:
    height, width = size if len(size) == 2 else (size[0], size[0])
    if picture.shape[-2] < height or picture.shape[-1] < width:
        raise ValueError(
            f"crop={height}x{width} is larger than a picture of {picture.shape[-2]}x{picture.shape[-1]}; "
            "put a resize before it"
        )
    top, left = (picture.shape[-2] - height) // 2, (picture.shape[-1] - width) // 2
    return picture[..., top : top + height, left : left + width]


def _gray(picture: Tensor) -> Tensor:
    import torch

    if picture.shape[0] == 1:
        return picture
    if picture.shape[0] != 3:
        raise ValueError(f"gray needs 3 channels, the picture has {picture.shape[0]}")
    light = (picture.float() * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True)
    return _stored_as(light, picture)


def white_of(picture: Tensor) -> int | None:
    """The number that is white in a picture; None for floats, where 1 is white, and for other types."""
    return WHITE.get(str(picture.dtype).removeprefix("torch."))


def _stored_as(pixels: Tensor, like: Tensor) -> Tensor:
    white = white_of(like)
    return (pixels if white is None else pixels.round().clamp(0, white)).to(like.dtype)


def of_one_depth(pictures: Sequence[Tensor]) -> list[Tensor]:
    """Pictures in one type: bytes beside 16 bits become 16 bits, and anything beside a float becomes floats.

    Example:
        >>> import torch
        >>> deep = torch.tensor([[[65535]]], dtype=torch.int32).to(torch.uint16)
        >>> [int(each) for each in of_one_depth([deep, torch.tensor([[[255]]], dtype=torch.uint8)])]
        [65535, 65535]
    """
    import torch

    if len({picture.dtype for picture in pictures}) == 1:
        return list(pictures)
    if any(white_of(picture) is None for picture in pictures):
        return [picture.float() / (white_of(picture) or 1) for picture in pictures]
    return [(picture.to(torch.int32) * (65535 // (white_of(picture) or 1))).to(torch.uint16) for picture in pictures]


@dataclass(frozen=True, kw_only=True)
class Normalise:
    """`(x / white - mean) / std` per channel; `white` is 255 for bytes, 65535 for 16 bits, else 1."""

    name: str
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __call__(self, batch_BCHW: Tensor) -> Tensor:
        """Turn a stored batch into a batch for the network."""
        white = white_of(batch_BCHW)
        batch = batch_BCHW if white is None else batch_BCHW.float()
        if self.name == "none" or not batch.is_floating_point():
            return batch
        if white is not None:
            batch = batch / white
        if not self.mean:
            return batch
        if batch.ndim < 3 or len(self.mean) not in (1, batch.shape[1]):
            raise ValueError(
                f"--normalise {self.name} is for {len(self.mean)} channels, the input is {tuple(batch.shape[1:])}; "
                'give unit, none, or as many figures as channels: "mean=…;std=…"'
            )
        shape = (1, -1, *(1,) * (batch.ndim - 2))
        return (batch - batch.new_tensor(self.mean).view(shape)) / batch.new_tensor(self.std).view(shape)


def parse_normalise(text: str) -> Normalise:
    """What `--normalise` asks for, except `auto`, which needs to see the data."""
    if text == "imagenet":
        return Normalise(name=text, mean=IMAGENET[0], std=IMAGENET[1])
    if text == "symmetric":
        return Normalise(name=text, mean=(0.5,), std=(0.5,))
    if text in ("unit", "none"):
        return Normalise(name=text)
    parts = dict(part.partition("=")[::2] for part in text.replace(" ", "").split(";"))
    try:
        mean, std = (tuple(map(float, parts.pop(name).split(","))) for name in ("mean", "std"))
    except (KeyError, ValueError):
        raise ValueError(f"--normalise {text!r} is not one of {NORMALISE_HELP}") from None
    if parts or len(mean) != len(std) or min(std) <= 0:
        raise ValueError(f"--normalise {text!r} needs as many means as positive standard deviations, and nothing else")
    return Normalise(name=text, mean=mean, std=std)
