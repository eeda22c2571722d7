"""Code tensors for the disk: byte planes, each by the coder of the standard library that makes it smallest.

Neighbouring numbers have similar bytes at the same place: signs and exponents repeat, low mantissa bits are noise.
Plane k holds byte k of every number; a plane of noise is stored raw.
"""

from __future__ import annotations

import lzma
import math
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from ..running.state import DTYPES, NAMES

# A plane that Huffman coding shrinks to no less than this share is noise: slower coders would be wasted on it.
NOISE = 0.97
# The dictionary size is fixed here, not read from the file, which could ask for any amount of memory.
_LZMA: Any = {"format": lzma.FORMAT_RAW, "filters": [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 22}]}
CODERS = ("raw", "zlib", "lzma")
_LARGEST = 1 << 48  # bytes of a tensor: far beyond memory, far below overflow
_AGAIN = "save the artifact again"


@dataclass(frozen=True, kw_only=True)
class Coded:
    """How a tensor was coded.

    Attributes:
        dtype, shape: of the tensor; a dtype such as "float32".
        planes: coder and stored bytes of every byte plane; the stored tensor is their concatenation.
        int8: whether its numbers were rounded to 8 bits, one scale for each entry of the first dimension.
    """

    dtype: str
    shape: tuple[int, ...]
    planes: tuple[tuple[str, int], ...]
    int8: bool

    def __str__(self) -> str:
        """One line, for `coded_text`: `float32 16x3x3x3 int8`, then the planes unless all are raw."""
        parts = [self.dtype, "x".join(map(str, self.shape)) or "scalar", *["int8"] * self.int8]
        if any(coder != "raw" for coder, _ in self.planes):
            parts += [coder if coder == "raw" else f"{coder}:{length}" for coder, length in self.planes]
        return " ".join(parts)

    def outline(self) -> Tensor:
        """A tensor of that shape and dtype, without memory."""
        return torch.empty(self.shape, dtype=DTYPES[self.dtype], device="meta")


def encode(
    tensors: Mapping[str, Tensor], rounds: Collection[str]
) -> tuple[dict[str, Tensor], dict[str, Coded], dict[str, float]]:
    """Code tensors.

    Args:
        tensors: contiguous or not.
        rounds: names of the floating tensors, of at least two dimensions, to round to 8 bits first; all others keep
            every bit.

    Returns:
        Bytes to store, how they were coded, and for each rounded tensor `||V - W|| / ||W||`.

    Raises:
        ValueError: if a tensor to be rounded is not finite.
    """
    stored: dict[str, Tensor] = {}
    coded: dict[str, Coded] = {}
    errors: dict[str, float] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        if name in rounds:
            if not tensor.float().isfinite().all():
                raise ValueError(
                    f"tensor {name!r} is not finite in float32, so it has no 8-bit form; take storage='entropy'"
                )
            numbers, scales = _rounded(tensor)
            planes = [_bytes(numbers), *_planes(scales)]
            norm = float(tensor.double().norm())
            gap = float((_unrounded(numbers, scales, tensor.dtype).double() - tensor.double()).norm())
            errors[name] = gap / norm if norm else gap
        else:
            planes = _planes(tensor)
        made = [_compressed(plane) for plane in planes]
        stored[name] = torch.frombuffer(bytearray(b"".join(data for _, data in made) or b"\0"), dtype=torch.uint8)
        coded[name] = Coded(
            dtype=NAMES[tensor.dtype],
            shape=tuple(tensor.shape),
            planes=tuple((coder, len(data)) for coder, data in made),
            int8=name in rounds,
        )
    return stored, coded, errors


def decode(name: str, stored: Tensor, coded: Coded) -> Tensor:
    """The tensor from its stored bytes.

    Decoding allocates the bytes of the declared shape and no more, so compare that shape with the network's first.

    Raises:
        ValueError: naming a tensor whose bytes are wrong.
    """
    dtype, sizes = DTYPES[coded.dtype], _sizes(coded.dtype, coded.shape, coded.int8)
    lengths = [length for _, length in coded.planes]
    whole = stored.dtype == torch.uint8 and stored.dim() == 1 and len(stored) == (sum(lengths) or 1)
    if len(lengths) != len(sizes) or not whole:
        raise ValueError(f"tensor {name!r}: its stored bytes do not match the manifest; {_AGAIN}")
    data, start, planes = stored.numpy().tobytes(), 0, []
    for (coder, length), size in zip(coded.planes, sizes, strict=True):
        planes.append(_expanded(name, coder, data[start : start + length], size))
        start += length
    if coded.int8:
        rows = _joined(planes[1:], torch.float32)
        if not rows.isfinite().all():
            raise ValueError(f"tensor {name!r}: a scale of its 8-bit numbers is not finite; {_AGAIN}")
        return _unrounded(_tensor(planes[0], torch.int8).reshape(coded.shape), rows, dtype)
    return _joined(planes, dtype).reshape(coded.shape)


def coded_text(text: Any) -> Any:
    """The plain value of a `Coded` from its line; any other text is returned unchanged, and refused by `is_coded`.

    Example:
        >>> coded = Coded(dtype="int64", shape=(), planes=(("zlib", 2), *[("raw", 1)] * 7), int8=False)
        >>> coded_text(str(coded))["shape"]
        []
    """
    try:
        dtype, sides, *rest = text.split(" ")
        shape = [] if sides == "scalar" else [int(side) for side in sides.split("x")]
        int8 = rest[:1] == ["int8"]
        if dtype not in DTYPES or not _is_shape(shape, DTYPES[dtype].itemsize) or (int8 and not shape):
            return text
        sizes, coders = _sizes(dtype, shape, int8), rest[int8:]
        coders = coders or ["raw"] * len(sizes)
        parts = [coder.partition(":") for coder in coders]
        planes = [
            [coder, int(length) if colon else size] for (coder, colon, length), size in zip(parts, sizes, strict=True)
        ]
    except (AttributeError, ValueError):
        return text
    return {"dtype": dtype, "shape": shape, "planes": planes, "int8": int8}


def is_coded(value: Any) -> bool:
    """Whether a plain value of JSON describes a `Coded`."""
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "planes", "int8"}:
        return False
    dtype, shape, planes, int8 = (value[key] for key in ("dtype", "shape", "planes", "int8"))
    if not isinstance(dtype, str) or dtype not in DTYPES or not isinstance(int8, bool):
        return False
    if not isinstance(shape, list) or not _is_shape(shape, DTYPES[dtype].itemsize):
        return False
    if int8 and (len(shape) < 2 or not DTYPES[dtype].is_floating_point):
        return False
    pairs = isinstance(planes, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in planes)
    return pairs and all(coder in CODERS and _is_count(length) for coder, length in planes)


def coded_from(plain: Mapping[str, Any]) -> Coded:
    """The `Coded` of a plain value that passes `is_coded`."""
    planes = tuple((coder, length) for coder, length in plain["planes"])
    return Coded(dtype=plain["dtype"], shape=tuple(plain["shape"]), planes=planes, int8=plain["int8"])


def _sizes(dtype: str, shape: Sequence[int], int8: bool) -> list[int]:
    """Bytes of every plane before it is coded."""
    numbers = math.prod(shape)
    return [numbers, *[shape[0]] * 4] if int8 else [numbers] * DTYPES[dtype].itemsize


def _is_shape(shape: list[Any], width: int) -> bool:
    """Whether all sides are counts, and their product (without zeros, as in strides) can be a tensor's size."""
    sizes = accumulate(shape, lambda size, side: size * max(side, 1), initial=width)
    return all(map(_is_count, shape)) and all(size <= _LARGEST for size in sizes)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST


def _rounded(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers from -127 to 127, and one scale for each entry of the first dimension."""
    rows = tensor.float().flatten(1)
    scales = rows.abs().amax(1) / 127
    numbers = (rows / torch.where(scales > 0, scales, 1.0)[:, None]).round().clamp(-127, 127)
    return numbers.to(torch.int8).reshape(tensor.shape), scales


def _unrounded(numbers: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    return (numbers.float() * scales.reshape(-1, *[1] * (numbers.dim() - 1))).to(dtype)


def _bytes(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()) if tensor.numel() else b""


def _planes(tensor: Tensor) -> list[bytes]:
    whole, width = _bytes(tensor), tensor.dtype.itemsize
    return [whole[place::width] for place in range(width)]


def _joined(planes: list[bytes], dtype: torch.dtype) -> Tensor:
    whole = bytearray(len(planes[0]) * len(planes))
    for place, plane in enumerate(planes):
        whole[place :: len(planes)] = plane
    return _tensor(whole, dtype)


def _tensor(data: bytes | bytearray, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)


def _compressed(plane: bytes) -> tuple[str, bytes]:
    """The shortest form of a plane."""
    huffman = zlib.compressobj(9, strategy=zlib.Z_HUFFMAN_ONLY)
    ways = [("raw", plane), ("zlib", huffman.compress(plane) + huffman.flush())]
    if len(ways[1][1]) < NOISE * len(plane):
        ways += [("zlib", zlib.compress(plane, 9)), ("lzma", lzma.compress(plane, **_LZMA))]
    return min(ways, key=lambda way: len(way[1]))


def _expanded(name: str, coder: str, data: bytes, size: int) -> bytes:
    """A plane of `size` bytes; a stream that holds more is not read to its end."""
    if coder == "raw":
        made, left = data, False
    elif not size:
        raise ValueError(f"tensor {name!r}: an empty plane is stored raw, not by {coder}")
    else:
        try:
            stream: Any = zlib.decompressobj() if coder == "zlib" else lzma.LZMADecompressor(**_LZMA)
            made = stream.decompress(data, size)
            # `size` bytes may be out while the end of the stream is still in the input: ask for one byte more.
            rest = stream.unconsumed_tail if coder == "zlib" else b""
            left = not stream.eof and bool(stream.decompress(rest, 1))
            left = left or not stream.eof or bool(stream.unused_data)
        except (zlib.error, lzma.LZMAError, EOFError) as error:
            raise ValueError(f"tensor {name!r}: its {coder} stream is damaged ({error}); {_AGAIN}") from error
    if left or len(made) != size:
        raise ValueError(f"tensor {name!r}: its {coder} stream does not hold the {size:,} bytes of its shape; {_AGAIN}")
    return made
