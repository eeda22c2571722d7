"""Text as DATA: a `.txt` or `.jsonl` file, read by the tokenizer of the model, packed into rows of one length."""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .data import Data, DataOptions
from .hugging_face import HUGGING_FACE, hugging_face_tokenizer, is_hugging_face

if TYPE_CHECKING:
    from torch import Tensor, nn

TEXTS = (".txt", ".jsonl")
# Keys of a line of .jsonl that hold its text, in this order.
TEXT_KEYS = ("text", "content", "document")
# Tokens of a row unless --length says otherwise, or the network takes fewer.
LENGTH = 512


def from_text(path: Path, model: str, network: nn.Module | None, options: DataOptions, samples: int | None) -> Data:
    """Rows of tokens from a file of text.

    Args:
        path: UTF-8; the lines of .jsonl are objects with a text, or texts.
        model: MODEL of the command line, whose tokenizer is used.
        network: tells the vocabulary and how many tokens a row may have.
        options: `length` of a row, `batch` rows in a batch, `seed` of the choice, whose first `skip` rows are left out.
        samples: number of rows; None for all.

    Raises:
        ValueError: if there is no such file or tokenizer, the text is too short, or the tokens are not the network's.
    """
    import torch

    tokenizer = _tokenizer(path, model)
    config = getattr(network, "config", None)
    most = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    length = options.length if options.length is not None else min(LENGTH, most or LENGTH)
    if length < 2:
        raise ValueError(f"--length {length} must be at least 2: a word is predicted from those before it")
    if most and length > most:
        raise ValueError(f"--length {length} is more than the {most} tokens that {model} takes")
    tokens = _tokens(tokenizer, list(_texts(path)))
    count = len(tokens) // length
    if not count:
        raise ValueError(
            f"{path} holds {len(tokens)} tokens, fewer than one row of {length}; give more text, or a smaller --length"
        )
    _check_vocabulary(tokens, model, network)
    rows = tokens[: count * length].view(count, length)
    wanted = count if samples is None else samples
    if options.skip >= count:
        raise ValueError(
            f"{path} holds {count} rows of {length} tokens, and {options.skip} of them have another use: none is left; "
            "give more text"
        )
    if options.skip or wanted < count:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(options.seed))
        rows = rows[order[options.skip :][:wanted].sort().values]
    size = max(1, min(options.batch, 4096 // length))  # a batch of many tokens holds as many answers of all words

    # A cache of keys and values is of no use here, and graphs cannot return it.
    further = {"use_cache": False} if "use_cache" in _arguments(network) else {}

    def passes() -> Iterator[tuple[Any, Any]]:
        for batch in rows.split(size):
            yield {"input_ids": batch, **further}, None

    return Data(
        name=str(path),
        samples=len(rows),
        labelled=False,
        classes=None,
        prepared=f"{len(rows)} rows of {length} tokens, packed",
        left=count - options.skip - len(rows),
        _passes=passes,
    )


def text_tokens(path: Path, model: str, network: nn.Module) -> Tensor:
    """All tokens of a file of text in a row; arguments and errors are those of `from_text`."""
    tokens = _tokens(_tokenizer(path, model), list(_texts(path)))
    if not len(tokens):
        raise ValueError(f"{path} holds no text")
    _check_vocabulary(tokens, model, network)
    return tokens


def _tokenizer(path: Path, model: str) -> Any:
    if not is_hugging_face(model):
        raise ValueError(f"{path}: text needs a tokenizer, and MODEL {model!r} has none; it is for hf:NAME_OR_FOLDER")
    if not path.is_file():
        raise ValueError(f"DATA {str(path)!r}: there is no file {path}")
    return hugging_face_tokenizer(model.removeprefix(HUGGING_FACE))


def _check_vocabulary(tokens: Tensor, model: str, network: nn.Module | None) -> None:
    vocabulary = getattr(getattr(network, "config", None), "vocab_size", None)
    if vocabulary and int(tokens.max()) >= vocabulary:
        raise ValueError(
            f"the tokenizer of {model} gives token {int(tokens.max())}, the network knows {vocabulary}: it does not "
            f"belong to this network"
        )


def _arguments(network: nn.Module | None) -> Collection[str]:
    """Names of the arguments of a network's forward."""
    return () if network is None else inspect.signature(network.forward).parameters


def _texts(path: Path) -> Iterator[str]:
    """The documents of a file."""
    with path.open(encoding="utf-8", errors="strict") as file:
        try:
            if path.suffix == ".txt":
                yield file.read()
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _text(line, f"{path}, line {number}")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def _text(line: str, where: str) -> str:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON: {error.msg}") from error
    if isinstance(value, str):
        return value
    found = next((value[key] for key in TEXT_KEYS if isinstance(value, dict) and isinstance(value.get(key), str)), None)
    if found is None:
        raise ValueError(f"{where} holds no text; lines are texts, or objects with one of {', '.join(TEXT_KEYS)}")
    return str(found)


def _tokens(tokenizer: Any, texts: list[str]) -> Tensor:
    """All tokens in a row; documents are divided by the token that ends one, where the tokenizer has it."""
    import torch

    end = [] if tokenizer.eos_token_id is None or len(texts) == 1 else [tokenizer.eos_token_id]
    numbers: list[int] = []
    for text in texts:
        numbers += tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] + end
    return torch.tensor(numbers, dtype=torch.int64)
