"""From PEFT files to what is served: sites, scaling, bases, digests; what cannot be served is named."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors
from safetensors.torch import save as save_torch

from tensafe.contracts.errors import IntegrityError, InvalidRequest, Unsupported
from tensafe_gpu.adapter_holder import served_codec
from tensafe_gpu.adapter_holder.extraction import extraction_note, measured
from tensafe_gpu.adapter_holder.peft_sites import check_base_model, read_peft
from tensafe_gpu.adapter_holder.policy import Policy
from tensafe_gpu.helora.adapter import LoraSite, Naming, orthogonal, serve
from tensafe_gpu.peft_settings import CONFIG_FILE, WEIGHTS_FILE
from tests.support.helora import PlainReference, peft_files

D, RANK = 48, 4
NAMING = Naming("a", 1, 1, "base", 1000)
SECRET = bytes(range(32))


def changed(files: dict[str, bytes], **config: object) -> dict[str, bytes]:
    return {**files, CONFIG_FILE: json.dumps(json.loads(files[CONFIG_FILE]) | config).encode()}


def with_tensors(files: dict[str, bytes], **tensors: np.ndarray) -> dict[str, bytes]:
    return {**files, WEIGHTS_FILE: save_tensors(load_tensors(files[WEIGHTS_FILE]) | tensors)}


def test_the_served_adapter_is_the_trained_one_up_to_rounding() -> None:
    files = peft_files(D, RANK, layers=2, alpha=8)
    tensors = load_tensors(files[WEIGHTS_FILE])
    plain = PlainReference(serve(read_peft(files), NAMING, SECRET))
    x = np.random.default_rng(3).standard_normal((20, D)).astype(np.float32)
    assert len(plain.info().sites) == 4
    for shape in plain.info().sites:
        products = plain.products([(shape.site, x)])[0]
        for module in shape.modules:
            delta = products[:, shape.rows(module.name)] @ plain.b_matrices()[shape.site][module.name].T
            prefix = f"base_model.model.{module.name}"
            a, b = (tensors[f"{prefix}.lora_{letter}.weight"] for letter in "AB")
            wanted = 8 / RANK * x @ a.T @ b.T
            assert np.linalg.norm(delta - wanted) < 0.01 * np.linalg.norm(wanted)


def test_q_k_and_v_of_a_layer_are_one_site_in_their_order() -> None:
    sites = read_peft(peft_files(D, RANK, layers=11, leaves=("v", "q", "k")))
    assert [site.site for site in sites] == [f"model.layers.{n}.self_attn.qkv" for n in range(11)]
    assert [one.name.rpartition(".")[2] for one in sites[10].modules] == ["q_proj", "k_proj", "v_proj"]


def test_equal_adapters_have_equal_digests_and_epochs_do_not() -> None:
    sites = read_peft(peft_files(D, RANK))
    first, again = serve(sites, NAMING, SECRET), serve(sites, NAMING, SECRET)
    assert first.info == again.info
    other = serve(sites, Naming("a", 1, 2, "base", 1000), SECRET)
    assert other.info.digest != first.info.digest
    assert serve(sites, NAMING, bytes(32)).info.digest != first.info.digest


def test_a_basis_is_orthogonal_and_its_own() -> None:
    basis = orthogonal(SECRET, 1, "s", "m", 16)
    assert np.allclose(basis @ basis.T, np.eye(16))
    others = [orthogonal(*changed) for changed in ((bytes(32), 1, "s", "m", 16), (SECRET, 2, "s", "m", 16),
              (SECRET, 1, "t", "m", 16), (SECRET, 1, "s", "n", 16))]  # fmt: skip
    assert all(np.abs(basis - other).max() > 0.1 for other in others)


def test_what_is_stored_is_what_was_served() -> None:
    adapter = serve(read_peft(peft_files(D, RANK)), NAMING, SECRET)
    content = served_codec.to_bytes(adapter)
    again = served_codec.from_bytes(content, NAMING, adapter.info.digest)
    assert again.info == adapter.info
    for site, served in adapter.sites.items():
        assert np.array_equal(again.sites[site].a, served.a)
    flipped = bytearray(content)
    flipped[-1] ^= 1
    for wrong in (bytes(flipped), content[:-1], b""):
        with pytest.raises(IntegrityError):
            served_codec.from_bytes(wrong, NAMING, adapter.info.digest)


FILES = peft_files(D, RANK)
A_OF_Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("files", "error", "words"),
    [
        ({}, InvalidRequest, "adapter_config.json is missing"),
        ({CONFIG_FILE: FILES[CONFIG_FILE]}, InvalidRequest, "adapter_model.safetensors is missing"),
        ({**FILES, WEIGHTS_FILE: b"xx"}, InvalidRequest, "unreadable"),
        (changed(FILES, r=0), InvalidRequest, "r must be"),
        (changed(FILES, r=1000), InvalidRequest, "r must be"),
        (changed(FILES, lora_alpha=float("inf")), InvalidRequest, "lora_alpha"),
        (changed(FILES, use_dora=True), Unsupported, "use_dora"),
        (changed(FILES, bias="all"), Unsupported, "biases"),
        (with_tensors(FILES, **{"base_model.model.lm_head.lora_A.weight": np.ones((4, 4), np.float32)}),
         Unsupported, "lm_head.*train_unembed=False"),
        (with_tensors(FILES, **{A_OF_Q: np.full((RANK, D), np.nan, np.float32)}),
         InvalidRequest, "not finite"),
        (with_tensors(FILES, **{A_OF_Q: np.ones((RANK, D), np.float64)}), Unsupported, "lora_A.*F64.*F32"),
        (with_tensors(FILES, **{A_OF_Q: np.ones((RANK + 1, D), np.float32)}), InvalidRequest, "do not fit"),
        (with_tensors(FILES, **{A_OF_Q: np.ones((RANK, D), np.int8)}), Unsupported, "I8"),
        (with_tensors(FILES, **{A_OF_Q: np.ones(D, np.float32)}), Unsupported, "1 dimensions"),
        (FILES | {CONFIG_FILE: b"[]"}, InvalidRequest, "not a LoRA configuration"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_named(files: dict[str, bytes], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        read_peft(files)


def test_an_adapter_in_16_bits_is_served_as_the_numbers_that_it_holds() -> None:
    """bfloat16 is what PEFT saves of a base in bfloat16: the upper half of a float32, so nothing is lost."""
    tensors = {name: torch.from_numpy(tensor) for name, tensor in load_tensors(FILES[WEIGHTS_FILE]).items()}
    for dtype in (torch.bfloat16, torch.float16):
        small = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        wide = {name: tensor.to(torch.float32) for name, tensor in small.items()}
        for found, wanted in zip(read(save_torch(small)), read(save_torch(wide)), strict=True):
            for one, other in zip(found.modules, wanted.modules, strict=True):
                assert np.array_equal(one.a, other.a)
                assert np.array_equal(one.b, other.b)
                assert one.a.any()


def read(weights: bytes) -> list[LoraSite]:
    return read_peft({**FILES, WEIGHTS_FILE: weights})


@pytest.mark.parametrize(
    "trained_on", ["Qwen/Qwen3-0.6B", "qwen3-0.6b", "/models/snapshots/5f2c", "./mine", "", None]
)
def test_an_adapter_of_this_base_model_is_taken_wherever_that_was_loaded_from(trained_on: str | None) -> None:
    files = changed(FILES, base_model_name_or_path=trained_on)
    assert json.loads(files[CONFIG_FILE])["base_model_name_or_path"] == trained_on
    assert check_base_model(files, "Qwen/Qwen3-0.6B") is None  # and raises nothing


@pytest.mark.parametrize("trained_on", ["Qwen/Qwen3-1.7B", "other", "Qwen/Qwen3-0.6B-Base"])
def test_an_adapter_of_another_base_model_is_refused_with_both_names(trained_on: str) -> None:
    files = changed(FILES, base_model_name_or_path=trained_on)
    with pytest.raises(InvalidRequest, match=f"{trained_on}.*Qwen/Qwen3-0.6B") as raised:
        check_base_model(files, "Qwen/Qwen3-0.6B")
    assert raised.value.field == "base_model"


def test_modules_of_one_site_with_different_inputs_are_refused() -> None:
    files = with_tensors(FILES, **{A_OF_Q: np.ones((RANK, D + 1), np.float32)})
    with pytest.raises(InvalidRequest, match="one input"):
        serve(read_peft(files), NAMING, SECRET)


@pytest.mark.parametrize(
    "fields",
    [{}, {"tenants": []}, {"tenants": ["t"]}, {"tenants": ["t", "t"], "tokens_per_site": 1},
     {"tenants": ["t"], "tokens_per_site": 0}, {"tenants": ["t"], "tokens_per_site": 1, "extra": 1}],
)  # fmt: skip
def test_a_policy_has_no_defaults(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        Policy.model_validate(fields)


def test_publishing_says_what_the_budget_gives_away() -> None:
    def note(tokens: int) -> str:
        return extraction_note(tokens, 896)

    by_tokens = {point.tokens: point for point in measured().points}
    # 896 inputs: the point with at least this share of them, in tokens of the adapter with 256.
    for tokens, of_256 in ((896, 256), (500, 192), (448, 128), (200, 64), (10, 4), (1, 4), (10**6, 512)):
        point, told = by_tokens[of_256], note(tokens)
        assert f"after {of_256} answers" in told
        assert f"error of {point.mean:.2g} on average" in told
        assert f"{point.least:.1g} at the best known" in told
        assert ("weights exactly" in told) is (tokens >= 896)
        assert "benchmarks.extraction" in told
