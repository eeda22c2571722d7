"""hf: models and text: what is read, and what is refused with which words."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from torch import nn

from rankwise.inputs.data import DataOptions
from rankwise.inputs.loading import load_data
from rankwise.inputs.models import load_model
from rankwise.inputs.text import from_text

pytest.importorskip("transformers")
from support.words import TEXT, save_model  # needs transformers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("hf") / "tiny")


@pytest.fixture(scope="module")
def network(folder: Path) -> nn.Module:
    return load_model(f"hf:{folder}")


def rows(
    path: Path, folder: Path, network: nn.Module | None = None, samples: int | None = None, **how: Any
) -> list[Any]:
    data = from_text(path, f"hf:{folder}", network, DataOptions(**how), samples)
    return [batch["input_ids"] for batch in data.inputs]


def test_the_class_is_the_one_of_the_configuration(network: nn.Module) -> None:
    assert type(network).__name__ == "LlamaForCausalLM"
    assert not network.training


def test_nothing_is_asked_of_the_internet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection was opened"))
    with pytest.raises(ValueError, match=r"hf:nobody/nothing cannot be read.*hf download nobody/nothing"):
        load_model("hf:nobody/nothing")


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda folder: None, "there is no such folder"),
        (lambda folder: folder.mkdir(), "the folder has no config.json"),
        (lambda folder: (folder.mkdir(), (folder / "config.json").write_text("{}")), "the folder has no weights"),
    ],
)
def test_folders_that_hold_no_model(make: Any, words: str, tmp_path: Path) -> None:
    make(tmp_path / "model")
    with pytest.raises(ValueError, match=words):
        load_model(f"hf:{tmp_path}/model")


def test_code_that_comes_with_a_model_is_not_run(folder: Path, tmp_path: Path) -> None:
    other = copytree(folder, tmp_path / "custom")
    config = json.loads((other / "config.json").read_text())
    config |= {"model_type": "mine", "architectures": ["Mine"], "auto_map": {"AutoConfig": "code.Config"}}
    (other / "config.json").write_text(json.dumps(config))
    (other / "code.py").write_text("raise SystemExit('run')")
    with pytest.raises(ValueError, match="cannot be read"):
        load_model(f"hf:{other}")


def test_a_class_that_transformers_does_not_have(folder: Path, tmp_path: Path) -> None:
    other = copytree(folder, tmp_path / "newer")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaOfNextYear"]}))
    with pytest.raises(ValueError, match=r"LlamaOfNextYear, which transformers .* does not have"):
        load_model(f"hf:{other}")


def test_text_is_packed_into_rows(folder: Path, network: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    whole = torch.cat(rows(tmp_path / "a.txt", folder, network, length=16))
    assert whole.shape[1] == 16
    assert whole.dtype == torch.int64
    some = torch.cat(rows(tmp_path / "a.txt", folder, network, samples=3, length=16, seed=1))
    assert len(some) == 3
    assert all(any(torch.equal(row, one) for one in whole) for row in some)
    assert torch.equal(some, torch.cat(rows(tmp_path / "a.txt", folder, network, samples=3, length=16, seed=1)))
    assert len(rows(tmp_path / "a.txt", folder, network, length=16, batch=2)[0]) == 2


def test_rows_for_another_use_are_others(folder: Path, network: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(
        " ".join(f"the {word}" for word in ["cat", "dog", "bird", "sat", "ran", "mat", "log"]) * 20
    )
    options: dict[str, Any] = {"length": 8, "seed": 2}
    first = from_text(tmp_path / "a.txt", f"hf:{folder}", network, DataOptions(**options), 5)
    whole = from_text(tmp_path / "a.txt", f"hf:{folder}", network, DataOptions(**options), None)
    others = from_text(tmp_path / "a.txt", f"hf:{folder}", network, DataOptions(skip=5, **options), None)
    assert first.left == others.samples
    assert whole.left == others.left == 0
    rows = [sorted(row for data in each for batch in data.inputs for row in batch["input_ids"].tolist())
            for each in ((first, others), (whole,))]  # fmt: skip
    assert rows[0] == rows[1]
    with pytest.raises(ValueError, match=rf"holds {whole.samples} rows of 8 tokens, and {whole.samples} of them have"):
        from_text(tmp_path / "a.txt", f"hf:{folder}", network, DataOptions(skip=int(whole.samples or 0), **options), 3)


def test_the_usual_length_is_what_the_network_takes(folder: Path, network: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT * 4)
    assert rows(tmp_path / "a.txt", folder, network)[0].shape[1] == 64


def test_documents_are_divided(folder: Path, network: nn.Module, tmp_path: Path) -> None:
    lines = [
        json.dumps({"text": "the cat sat"}),
        "",
        json.dumps({"id": 1, "content": "the dog ran"}),
        json.dumps("the"),
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    tokens = torch.cat(rows(tmp_path / "a.jsonl", folder, network, length=5)).flatten().tolist()
    end = network.config.eos_token_id  # type: ignore[union-attr]
    assert tokens[3] == end
    assert tokens[7] == end


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("a.txt", b"the cat", "tokens, fewer than one row of 64; give more text, or a smaller --length"),
        ("a.txt", b"\xff\xfe the", "is not UTF-8 text"),
        ("a.jsonl", b'{"text": "the"}\n{"text": ', "line 2 is not JSON"),
        ("a.jsonl", b'{"words": "the"}', "line 1 holds no text; lines are texts, or objects with one of text, content"),
    ],
)
def test_text_that_cannot_be_used(
    name: str, content: bytes, words: str, folder: Path, network: nn.Module, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        rows(tmp_path / name, folder, network)


def test_rows_that_are_too_long(folder: Path, network: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    with pytest.raises(ValueError, match=r"--length 65 is more than the 64 tokens"):
        rows(tmp_path / "a.txt", folder, network, length=65)
    with pytest.raises(ValueError, match=r"--length 1 must be at least 2"):
        rows(tmp_path / "a.txt", folder, network, length=1)


def test_a_tokenizer_of_another_network(folder: Path, network: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    other = save_model(tmp_path / "smaller", words=8)
    with pytest.raises(ValueError, match=r"token \d+, the network knows 8: it does not belong to this network"):
        rows(tmp_path / "a.txt", folder, load_model(f"hf:{other}"), length=16)


def test_text_without_a_tokenizer(network: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    with pytest.raises(ValueError, match=r"text needs a tokenizer, and MODEL 'nets.py:build' has none"):
        load_data(str(tmp_path / "a.txt"), DataOptions(), network=network, model="nets.py:build")
