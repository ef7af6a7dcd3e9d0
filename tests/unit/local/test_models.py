"""`--model NAME=SOURCE`: names, config.json, families, the hub, and a name that always means one model."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tensafe.contracts.errors import ConfigurationError, InvalidRequest, TensafeError, Unsupported
from tensafe.contracts.training import ModelInfo
from tensafe.local.model_registry import ModelRegistry
from tensafe.local.models import ModelSource
from tests.support.model_folders import model_folder


def resolve(source: object, name: str = "acme/tiny") -> ModelInfo:
    return ModelSource.parse(f"{name}={source}").resolve()


def test_a_folder_is_described_from_its_config(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    info = resolve(folder)
    assert info == ModelInfo(
        name="acme/tiny",
        path=str(folder.resolve()),
        arch="Qwen3ForCausalLM",
        vocab_size=512,
        max_context_tokens=256,
    )


def test_sizes_of_the_text_part_count_where_there_is_one(tmp_path: Path) -> None:
    text = {"vocab_size": 77, "max_position_embeddings": 33}
    info = resolve(model_folder(tmp_path, text_config=text, vocab_size=None, max_position_embeddings=None))
    assert (info.vocab_size, info.max_context_tokens) == (77, 33)


@pytest.mark.parametrize(
    ("family", "arch"),
    [("llama", "LlamaForCausalLM"), ("qwen2", "Qwen2ForCausalLM"), ("qwen3", "Qwen3ForCausalLM")],
)
def test_supported_families(tmp_path: Path, family: str, arch: str) -> None:
    assert resolve(model_folder(tmp_path, model_type=family, architectures=None)).arch == arch


@pytest.mark.parametrize("family", ["gpt2", "gemma3", "qwen3_moe", None])
def test_another_family_is_refused_by_name(tmp_path: Path, family: str | None) -> None:
    with pytest.raises(Unsupported, match=f"'{family}' model; .*llama, qwen2, qwen3"):
        resolve(model_folder(tmp_path, model_type=family))


def test_a_quantised_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="quantised"):
        resolve(model_folder(tmp_path, quantization_config={"quant_method": "awq"}))


@pytest.mark.parametrize(
    ("text", "field"), [("vocab_size", None), ("vocab_size", 0), ("max_position_embeddings", "many")]
)
def test_a_config_without_sizes_is_refused(tmp_path: Path, text: str, field: object) -> None:
    with pytest.raises(ConfigurationError, match="lacks a usable vocab_size or max_position_embeddings"):
        resolve(model_folder(tmp_path, **{text: field}))


def test_a_folder_without_a_readable_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no config\.json"):
        resolve(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigurationError, match="cannot be read as JSON"):
        resolve(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigurationError, match="not a JSON object"):
        resolve(tmp_path)


@pytest.mark.parametrize("name", ["tiny", "Qwen/Qwen3-8B-Base", "a.b_c-d/E9", "x" * 96])
def test_names(name: str) -> None:
    assert ModelSource.parse(f"{name}=a=b").source == "a=b"
    assert ModelSource.parse(f"{name}=folder").name == name


@pytest.mark.parametrize(
    "text",
    ["", "tiny", "tiny=", "=folder", "a/b/c=f", "-a=f", "a b=f", "/a=f", "a/=f", "x" * 97 + "=f", "é=f"],
)
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        ModelSource.parse(text)


@pytest.mark.parametrize("source", ["./absent", "/absent/folder", "~/absent-folder", "a/b/c", "one-word"])
def test_a_source_that_is_neither_folder_nor_hub_id_is_not_looked_up(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib, "import_module", lambda name: pytest.fail(f"{name} was imported"))
    with pytest.raises(ConfigurationError, match="there is no folder"):
        resolve(source)


def test_a_hub_id_is_downloaded_with_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def snapshot_download(repo_id: str, **options: object) -> str:
        asked.update(repo_id=repo_id, **options)
        return str(model_folder(tmp_path / "snapshot"))

    hub = SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)  # type: ignore[arg-type]
    assert resolve("acme/base-1@v2").path == str(tmp_path / "snapshot")
    assert (asked["repo_id"], asked["revision"]) == ("acme/base-1", "v2")
    assert "*.safetensors" in asked["allow_patterns"]
    assert "*.bin" not in asked["allow_patterns"]


def test_without_the_library_or_the_network_the_message_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_network(*_: object, **__: object) -> str:
        raise ConnectionError("proxy of the customer 10.0.0.1")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=no_network))  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"\(ConnectionError\): check the name and the network"):
        resolve("acme/base")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"install tensafe\[gpu\], or give a folder"):
        resolve("acme/base")


def test_the_rank_limit_of_the_operator_is_kept(tmp_path: Path) -> None:
    source = ModelSource("tiny", str(model_folder(tmp_path)))
    assert source.resolve(max_lora_rank=8).max_lora_rank == 8
    with pytest.raises(InvalidRequest, match="1 to 256"):
        source.resolve(max_lora_rank=257)


def test_no_machine_learning_library_is_imported() -> None:
    code = (
        "import sys; import tensafe.local.models, tensafe.local.up, tensafe.cli.app;"
        "sys.exit(bool({'torch', 'transformers', 'vllm', 'huggingface_hub'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_the_registry_remembers_every_model(tmp_path: Path) -> None:
    registry = ModelRegistry(tmp_path)
    assert registry.models() == ()
    one, two = (resolve(model_folder(tmp_path / name), name) for name in ("one", "two"))
    registry.register(one)
    registry.register(two)
    assert ModelRegistry(tmp_path).models() == (one, two)
    assert (tmp_path / "models.json").stat().st_mode & 0o777 == 0o600


def test_a_model_may_move_but_a_name_keeps_its_weights(tmp_path: Path) -> None:
    registry = ModelRegistry(tmp_path)
    registry.register(resolve(model_folder(tmp_path / "old", weights=b"w" * 3_000_000)))
    moved = resolve(model_folder(tmp_path / "new", weights=b"w" * 3_000_000))
    registry.register(moved)
    assert registry.models() == (moved,)
    for place in (0, 2_999_999):
        weights = bytearray(b"w" * 3_000_000)
        weights[place] ^= 1
        other = resolve(model_folder(tmp_path / f"other-{place}", weights=bytes(weights)))
        with pytest.raises(ConfigurationError, match="served from other weights"):
            registry.register(other)
    assert registry.models() == (moved,)


def test_a_model_without_weights_is_refused(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigurationError, match="has no weights"):
        ModelRegistry(tmp_path).register(resolve(folder))


@pytest.mark.parametrize("content", ["{", "[]", '{"a": {}}', '{"a": {"model": {"name": 1}, "weights": ""}}'])
def test_a_damaged_registry_is_an_error_not_an_empty_one(tmp_path: Path, content: str) -> None:
    (tmp_path / "models.json").write_text(content)
    with pytest.raises(TensafeError, match="damaged"):
        ModelRegistry(tmp_path).models()
