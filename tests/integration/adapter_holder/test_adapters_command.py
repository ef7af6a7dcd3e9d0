"""`tensafe adapters` on one machine, as an operator meets it: every refusal says what to do next."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter
from typer.testing import CliRunner

from tensafe.cli.app import app
from tensafe.contracts.errors import ConfigurationError, NotFound
from tensafe.contracts.execution import ExecutionPolicy
from tensafe.contracts.training import ModelInfo
from tensafe.local.admin import find_checkpoint
from tensafe.local.composition import initialise, local_services
from tensafe.local.holder_command import in_directory
from tensafe.local.publishing_terms import _TENANT
from tensafe.local.settings import LocalSettings
from tensafe.operations.checkpoints import Checkpoint, CheckpointKind
from tensafe.operations.layout import placed_listing, placement_item
from tensafe.operations.placements import Placement
from tensafe.operations.records import OpKind, StreamKind, StreamState
from tensafe.operations.submissions import Submission
from tensafe.packages.bundle import pack_files, unpack_files
from tensafe.services import Services
from tensafe.storage.ports import Delete, Put
from tensafe_gpu.adapter_holder.composition import directory_store
from tensafe_gpu.adapter_holder.composition import initialise as initialise_holder
from tensafe_gpu.adapter_holder.peft_sites import read_peft
from tensafe_gpu.adapter_holder.policy import TenantName
from tensafe_gpu.helora.quantise import CREST
from tests.support.certificates import Authority
from tests.support.helora import peft_files

pytestmark = pytest.mark.slow

RUN = "s-1:train:0"
BASE = ModelInfo(name="base/m", path="/nowhere", arch="qwen3", vocab_size=9, max_context_tokens=9)
AT = "unix:/run/tensafe/adapters"
Tensafe = Callable[..., Any]


def path(name: str) -> str:
    return f"tinker://{RUN}/sampler_weights/{name}"


def save(services: Services, name: str, created_ms: int = 1) -> None:
    """Sampler weights of the run."""
    run = services.streams.find(RUN)
    assert run is not None
    files = peft_files(64, 8, leaves=("o",))
    ref = services.artifacts.write(run.scope, f"ckpt/sampler_weights/{name}", pack_files(files))
    checkpoint = Checkpoint(
        run_id=RUN, tenant="acme", kind=CheckpointKind.SAMPLER, name=name, base_model=BASE.name,
        created_ms=created_ms, ref=ref, artifact_id=f"art-{name}",
    )  # fmt: skip
    services.ports.items.write(services.checkpoints.saving(checkpoint, overwrite=False))


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    """Sampler weights `mine` and `other` of tenant acme."""
    initialise(tmp_path / "data")
    with local_services(LocalSettings(data_dir=tmp_path / "data", models=(BASE,))) as services:
        services.api_keys.create("acme", ["train"])
        record, creation = services.streams.creation(RUN, "acme", StreamKind.RUN, BASE.name)
        services.submissions.create(record, creation, Submission(0, OpKind.CREATE, b"{}"))
        for name in ("mine", "other"):
            save(services, name)
        yield services


@pytest.fixture
def tensafe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, services: Services) -> Tensafe:
    """`tensafe("list")`: what `tensafe adapters list --json` prints; with `code`, why it fails."""
    monkeypatch.setenv("TENSAFE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path))

    def run(command: str, *arguments: str, code: int = 0) -> Any:
        done = CliRunner().invoke(app, ["adapters", command, *arguments, "--json"])
        assert done.exit_code == code, done.output
        return done.stderr.removeprefix("tensafe: ").strip() if code else json.loads(done.stdout)

    return run


def publish(tensafe: Tensafe, at: Path, name: str, *more: str, code: int = 0, **changed: str) -> Any:
    """The weights `name`, or the run's newest where that is the run."""
    given = {
        "holder": AT,
        "holder_tenant": "sampler",
        "tokens_per_site": "100",
        "policy": "HE_REQUIRED",
    } | changed
    options = [word for key, value in given.items() for word in (f"--{key.replace('_', '-')}", value)]
    where = ("--holder-dir", str(at))
    weights = name if name == RUN else path(name)
    return tensafe("publish", weights, "--private", "--yes", *where, *options, *more, code=code)


def again_at(holder: Path, folder: Path, adapter: str, tokens_per_site: int = 100) -> None:
    """What a killed `tensafe` may leave there: the same weights as one more version."""
    folder.mkdir()
    for name, content in peft_files(64, 8, leaves=("o",)).items():
        (folder / name).write_bytes(content)
    in_directory(holder)(
        "publish", "--name", adapter, "--peft", str(folder), "--base-model", BASE.name,
        "--tenants", "sampler", "--tokens-per-site", str(tokens_per_site),
    )  # fmt: skip


def test_a_private_adapter_from_its_publication_to_its_end(tensafe: Tensafe, tmp_path: Path) -> None:
    holder = tmp_path / "holder"
    refused = publish(tensafe, holder, "mine", code=1)
    assert f"python -m tensafe_gpu.adapter_holder init --data-dir {holder}" in refused
    initialise_holder(holder)

    assert "choose HE_REQUIRED" in publish(tensafe, holder, "mine", code=2, policy="PLAINTEXT_ONLY")
    assert tensafe("list") == []

    first = publish(tensafe, holder, "mine", "--keep-run")
    rounding = first.pop("rounding")
    assert rounding.endswith("of 1 sites")
    assert "measured; activations" in rounding
    assert f"assumed that a token's largest is {CREST:g} times" in rounding
    assert first["holder_tenant"] == "sampler"
    assert publish(tensafe, holder, "mine", "--keep-run") == first  # again is fine
    assert "for sampler" in publish(tensafe, holder, "mine", code=1, holder_tenant="another")
    # Whom it is for, and how much, have no defaults.
    least = ("publish", path("mine"), "--private", "--yes", "--holder", AT)
    assert "--holder-tenant" in tensafe(*least, "--tokens-per-site", "100", code=2)
    assert "--tokens-per-site" in tensafe(*least, "--holder-tenant", "sampler", code=2)
    assert "budget of 100" in publish(tensafe, holder, "mine", code=1, tokens_per_site="200")
    other = publish(tensafe, holder, "mine", "--keep-plaintext", code=1, policy="HE_PREFERRED")
    assert "published already: HE_REQUIRED" in other
    assert [one["path"] for one in tensafe("list")] == [path("mine")]

    here = tensafe("show", path("mine"))
    there = tensafe("show", path("mine"), "--holder-dir", str(holder))
    counted = {
        "status": "active",
        "epoch": 1,
        "digest": first["digest"],
        "tokens_per_site": 100,
        "metered": 0,
    }
    assert there == here | counted
    second = tensafe("rotate", path("mine"), "--holder-dir", str(holder))
    assert (second["epoch"], tensafe("show", path("mine"))["digest"]) == (2, second["digest"])
    assert second["digest"] != first["digest"]
    assert "--holder-dir" in tensafe("rotate", path("mine"), code=1)

    # By the adapter holder's own command, as on AWS: it is not sampled before somebody takes that over.
    third = in_directory(holder)("rotate", "--name", first["adapter"])
    differs = tensafe("show", path("mine"), "--holder-dir", str(holder))
    assert (differs["digest"], "--rotated" in differs["refused"]) == (third["digest"], True)
    assert "--rotated" in tensafe("rotate", path("mine"), "--holder-dir", str(holder), code=1)
    assert tensafe("show", path("mine")) == second
    taken = tensafe("rotate", path("mine"), "--rotated", "--holder-dir", str(holder))
    assert (taken["epoch"], taken["digest"]) == (3, third["digest"])
    assert "refused" not in tensafe("show", path("mine"), "--holder-dir", str(holder))

    assert tensafe("revoke", path("mine"), "--holder-dir", str(holder), "--yes")["erased"] is True
    assert tensafe("list") == []
    publish(tensafe, holder, "other")
    left = tensafe("revoke", path("other"), "--yes")["left"]
    assert left.endswith("revoke --name art-other --version 1 erases it")
    assert in_directory(holder)(*left.split()[7:12])["status"] == "revoked"
    for command in ("show", "rotate", "revoke"):
        more = () if command == "show" else ("--holder-dir", str(holder))
        assert "tensafe adapters list" in tensafe(command, path("mine"), *more, code=3)


def test_a_published_adapter_is_erased_elsewhere_with_its_run(
    tensafe: Tensafe, services: Services, tmp_path: Path
) -> None:
    """Of a run its newest sampler weights are published, and again the same, whatever else it had."""
    holder = tmp_path / "holder"
    initialise_holder(holder)
    save(services, "newest", created_ms=2)
    assert "tensafe runs list" in tensafe(
        *("publish", "s-2:train:0", "--private", "--yes", "--holder", AT, "--holder-tenant", "s"),
        *("--tokens-per-site", "1", "--holder-dir", str(holder)), code=3,
    )  # fmt: skip
    first = publish(tensafe, holder, RUN)
    assert (first["path"], first["adapter"]) == (path("newest"), "art-newest")
    assert first["other_copies"].startswith(f"none: run {RUN} is erased")
    run = services.streams.find(RUN)
    assert run is not None
    assert run.state is StreamState.ERASED
    assert services.ports.items.get(run.scope.key_item) is None
    assert services.checkpoints.of_run(RUN) == []
    assert publish(tensafe, holder, RUN) == {
        name: value for name, value in first.items() if name != "rounding"
    }
    assert in_directory(holder)("list")["adapters"][0]["status"] == "active"
    tensafe("revoke", path("newest"), "--holder-dir", str(holder), "--yes")
    assert "save_weights_for_sampler" in publish(tensafe, holder, RUN, code=3)


def test_a_run_means_its_newest_weights_whatever_was_published_of_it_before(
    tensafe: Tensafe, services: Services, tmp_path: Path
) -> None:
    """When something was published says nothing of when it was saved."""
    holder = tmp_path / "holder"
    initialise_holder(holder)
    publish(tensafe, holder, "mine", "--keep-run")
    save(services, "newer", created_ms=5)
    assert publish(tensafe, holder, RUN, "--keep-run")["path"] == path("newer")
    assert publish(tensafe, holder, RUN, "--keep-run")["path"] == path("newer")
    # An older release did not note when it was saved; a later one may note what this one does not know.
    place = placement_item(RUN, "mine")
    item = services.ports.items.get(place)
    assert item is not None
    body = {key: value for key, value in item.body.items() if key != "saved_ms"}
    services.ports.items.write([Put(place, {**body, "colour": "blue"}, item.version)])
    assert "by their path" in publish(tensafe, holder, RUN, code=1)
    assert tensafe("show", path("mine"))["adapter"] == "art-mine"


def test_a_wrong_address_is_mended_by_moving_it(tensafe: Tensafe, services: Services, tmp_path: Path) -> None:
    """The run is erased: nothing could be published again."""
    holder = tmp_path / "holder"
    initialise_holder(holder)
    wrong = publish(tensafe, holder, "mine", holder="unix:/run/tensafe/adaptors")
    refused = publish(tensafe, holder, "mine", code=1)
    assert "tensafe adapters move" in refused
    moved = tensafe("move", path("mine"), "--holder", AT)
    assert moved == {name: wrong[name] for name in moved} | {"holder": AT}
    assert tensafe("move", path("mine"), "--holder", AT) == tensafe("show", path("mine")) == moved
    assert publish(tensafe, holder, "mine")["digest"] == moved["digest"]
    assert "tcp:HOST:PORT" in tensafe("move", path("mine"), "--holder", "tcp:h:https", code=2)
    assert "tensafe adapters list" in tensafe("move", path("other"), "--holder", AT, code=3)
    files = Authority(tmp_path).issue("samplers-of-acme")
    pems = {"cert": files.certificate, "key": files.key, "ca": files.authority}
    tensafe("certificate", *(word for name, file in pems.items() for word in (f"--{name}", str(file))))
    over_tcp = ("move", path("mine"), "--holder", "tcp:h:1")
    assert "are samplers-of-acme by their certificate" in tensafe(*over_tcp, code=2)
    # What an older release placed is held to no digest, wherever it is.
    placed = services.placements.find(RUN, "mine")
    services.placements._change(placed, replace(placed, digest=None))
    elsewhere = ("move", path("mine"), "--holder", "unix:/run/other")
    assert "--rotated" in tensafe(*elsewhere, code=1)
    tensafe("rotate", path("mine"), "--rotated", "--holder-dir", str(holder))
    assert (taken := tensafe(*elsewhere))["holder"] == "unix:/run/other"
    assert taken["digest"] == moved["digest"]


def test_what_the_adapter_holder_has_lost_is_not_erased_here(
    tensafe: Tensafe, services: Services, tmp_path: Path
) -> None:
    """Another directory, or a version that was revoked there: the run's other copies may be the last."""
    holder, other = tmp_path / "holder", tmp_path / "other-holder"
    initialise_holder(holder)
    initialise_holder(other)
    first = publish(tensafe, holder, "mine", "--keep-run")
    assert "has it no more" in publish(tensafe, other, "mine", code=1)
    in_directory(holder)("revoke", "--name", first["adapter"])
    assert "has it no more" in publish(tensafe, holder, "mine", code=1)
    run = services.streams.find(RUN)
    assert run is not None
    assert run.state is StreamState.ACTIVE
    assert find_checkpoint(services, path("other"))


def test_a_publication_is_ended_by_its_own_version_whatever_else_the_adapter_holder_has(
    tensafe: Tensafe, services: Services, tmp_path: Path
) -> None:
    """A try that was killed may have left a second one; other weights under the name end nothing."""
    holder, other = tmp_path / "holder", tmp_path / "other-holder"
    for place in (holder, other):
        initialise_holder(place)
    first = publish(tensafe, holder, "mine", "--keep-run")
    again_at(holder, tmp_path / "peft", first["adapter"])
    again_at(other, tmp_path / "others", first["adapter"])
    assert [one["version"] for one in in_directory(holder)("list")["adapters"]] == [1, 2]
    assert "nothing is erased" in publish(tensafe, other, "mine", code=1)
    run = services.streams.find(RUN)
    assert run is not None
    assert run.state is StreamState.ACTIVE
    ended = publish(tensafe, holder, "mine")
    assert (ended["version"], ended["digest"]) == (1, first["digest"])
    run = services.streams.find(RUN)
    assert run is not None
    assert run.state is StreamState.ERASED
    in_directory(holder)("rotate", "--name", first["adapter"], "--version", "1")
    assert "--rotated" in publish(tensafe, holder, "mine", code=1)
    tensafe("rotate", path("mine"), "--rotated", "--holder-dir", str(holder))
    assert publish(tensafe, holder, "mine")["epoch"] == 2
    in_directory(holder)("revoke", "--name", first["adapter"], "--version", "1")
    assert "has it no more" in publish(tensafe, holder, "mine", code=1)


def test_an_erasure_takes_nothing_that_is_kept_of_another_adapter_of_the_run(
    tensafe: Tensafe, services: Services, tmp_path: Path
) -> None:
    holder = tmp_path / "holder"
    initialise_holder(holder)
    kept = publish(tensafe, holder, "mine", "--keep-plaintext", policy="HE_PREFERRED")
    refused = publish(tensafe, holder, "other", code=1)
    assert path("mine") in refused
    assert "--keep-run" in refused
    assert [one["name"] for one in in_directory(holder)("list")["adapters"]] == [kept["adapter"]]
    assert publish(tensafe, holder, "other", "--keep-run")["adapter"] == "art-other"
    assert tensafe("show", path("mine"))["kept_in_the_clear"] == kept["digest"]


def test_published_again_it_ends_no_session_that_was_opened_since(
    tensafe: Tensafe, services: Services, tmp_path: Path
) -> None:
    holder = tmp_path / "holder"
    initialise_holder(holder)
    publish(tensafe, holder, "mine")
    spec = {"model_path": path("mine")}
    sampler, writes = services.streams.creation(
        "s-1:sample:0", "acme", StreamKind.SAMPLER, BASE.name, spec=spec
    )
    services.ports.items.write(writes)
    publish(tensafe, holder, "mine")
    found = services.streams.find(sampler.stream_id)
    assert found is not None
    assert found.state is StreamState.ACTIVE


def test_it_is_for_one_name_and_over_tcp_for_the_one_in_the_samplers_certificate(
    tensafe: Tensafe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What nobody could use is not published: no command changes for whom it is."""
    holder = tmp_path / "holder"
    initialise_holder(holder)
    assert TypeAdapter(TenantName).json_schema()["pattern"] == f"^{_TENANT.pattern}$"
    for name in ("x,y", "", "a b"):
        assert "one name" in publish(tensafe, holder, "mine", code=2, holder_tenant=name)
    files = Authority(tmp_path).issue("samplers-of-acme")
    pems = {"cert": files.certificate, "key": files.key, "ca": files.authority}
    tensafe("certificate", *(word for name, file in pems.items() for word in (f"--{name}", str(file))))
    at = {"holder": "tcp:localhost:1"}
    assert "are samplers-of-acme by their certificate" in publish(tensafe, holder, "mine", code=2, **at)
    (tmp_path / "tls").mkdir()
    other = Authority(tmp_path / "tls").issue("others")
    (tmp_path / "tls" / "cert.pem").write_bytes(other.certificate.read_bytes())
    with monkeypatch.context() as patch:  # which samplers take before what is kept
        patch.setenv("TENSAFE_HOLDER_TLS", str(tmp_path / "tls"))
        at["holder_tenant"] = "samplers-of-acme"
        assert "are others by their certificate" in publish(tensafe, holder, "mine", code=2, **at)
        (tmp_path / "tls" / "cert.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n")
        assert "not a certificate" in publish(tensafe, holder, "mine", code=1, **at)
    assert in_directory(holder)("list") == {"adapters": []}
    assert publish(tensafe, holder, "mine", **at)["policy"] == "HE_REQUIRED"


def test_he_preferred_needs_weights_in_the_clear_and_keeps_those_that_are_served(
    tensafe: Tensafe, services: Services, tmp_path: Path
) -> None:
    holder, run = tmp_path / "holder", services.streams.find(RUN)
    initialise_holder(holder)
    preferred = {"policy": "HE_PREFERRED"}
    assert run is not None
    assert "--keep-plaintext" in publish(tensafe, holder, "mine", code=2, **preferred)
    assert "choose HE_PREFERRED" in publish(tensafe, holder, "mine", "--keep-plaintext", code=2)
    assert tensafe("list") == []

    first = publish(tensafe, holder, "mine", "--keep-plaintext", **preferred)
    assert first["other_copies"].startswith("the quantised adapter, for HE_PREFERRED")
    assert tensafe("show", path("mine"))["kept_in_the_clear"] == first["digest"]
    kept = services.keeping.peek(RUN, "mine")
    assert kept is not None
    (clear,) = read_peft(unpack_files(services.keeping.read(run, kept)))
    (source,) = read_peft(peft_files(64, 8, leaves=("o",)))
    served = directory_store(holder).load(first["adapter"]).adapter.sites[clear.site]
    (module,) = clear.modules
    np.testing.assert_array_equal(module.a * 2**9, served.a)  # the very integers
    np.testing.assert_array_equal(module.b * 2.0**-9, served.b[module.name])
    exact = source.modules[0].scaling * source.modules[0].b @ source.modules[0].a
    np.testing.assert_allclose(module.scaling * module.b @ module.a, exact, atol=0.02 * np.abs(exact).max())
    again = publish(tensafe, holder, "mine", "--keep-plaintext", **preferred)
    assert again == {name: value for name, value in first.items() if name != "rounding"}
    tensafe("revoke", path("mine"), "--holder-dir", str(holder), "--yes")
    assert services.keeping.peek(RUN, "mine") is None


def test_a_publication_on_wrong_terms_leaves_nothing_behind_and_one_that_is_made_is_named(
    tensafe: Tensafe, services: Services, tmp_path: Path
) -> None:
    holder = tmp_path / "holder"
    initialise_holder(holder)
    for at in ("/run/adapters", "unix:", "tcp:", "tcp:localhost", "tcp:h:https", "tcp:h:99999"):
        assert "unix:PATH or tcp:HOST:PORT" in publish(tensafe, holder, "mine", code=2, holder=at)
    assert "from the root" in publish(tensafe, holder, "mine", code=2, holder="unix:run/adapters")
    assert in_directory(holder)("list") == {"adapters": []}
    assert find_checkpoint(services, path("mine"))
    kept = publish(tensafe, holder, "mine", "--keep-run")
    assert kept["other_copies"] == f"in what is kept of run {RUN}: tensafe runs erase {RUN}"
    with pytest.raises(NotFound, match="tensafe adapters show"):
        find_checkpoint(services, path("mine"))
    with pytest.raises(NotFound, match="tensafe checkpoints list"):
        find_checkpoint(services, path("none"))


def test_those_of_a_tenant_without_an_api_key_are_listed_and_so_are_an_older_releases(
    tensafe: Tensafe, services: Services, tmp_path: Path
) -> None:
    """A tenant that comes by an identity provider's tokens has none; an older release kept no such list."""
    placed = []
    for number, tenant in enumerate(("acme", "globex")):
        one = Placement(
            f"s-{number}:train:0", "mine", tenant, BASE.name, ExecutionPolicy.HE_REQUIRED,
            AT, "a", 1, "sampler", 0,
        )  # fmt: skip
        placed.append(services.placements.add(one))
    assert [one["tenant"] for one in tensafe("list")] == ["acme", "globex"]
    services.ports.items.write([Delete(placed_listing(one.run_id, one.name), None) for one in placed])
    assert [one["tenant"] for one in tensafe("list")] == ["acme"]
    assert [one["tenant"] for one in tensafe("list", "--tenant", "globex")] == ["globex"]
    services.placements.add(placed[1])
    for one in placed:
        services.placements.remove(one)
    assert tensafe("list") == []


def test_a_publication_that_was_cut_short_goes_on_with_its_own_budget_alone(
    tensafe: Tensafe, tmp_path: Path
) -> None:
    """The adapter holder has it, and nothing here says so yet."""
    holder = tmp_path / "holder"
    initialise_holder(holder)
    again_at(holder, tmp_path / "peft", "art-other", 50)
    assert "--tokens-per-site 50" in publish(tensafe, holder, "other", code=1)
    wrong = {"tokens_per_site": "50", "holder_tenant": "others"}
    assert "--holder-tenant sampler" in publish(tensafe, holder, "other", code=1, **wrong)
    assert tensafe("list") == []
    assert publish(tensafe, holder, "other", tokens_per_site="50")["adapter"] == "art-other"


@pytest.mark.parametrize("what", ["there", "no room for it"])
def test_what_cannot_be_kept_in_the_clear_is_not_published(tmp_path: Path, what: str) -> None:
    holder, folder = tmp_path / "holder", tmp_path / "peft"
    initialise_holder(holder)
    folder.mkdir()
    for name, content in peft_files(64, 8, leaves=("o",)).items():
        (folder / name).write_bytes(content)
    clear = folder if what == "there" else folder / "adapter_config.json" / "clear"
    terms = ("--base-model", BASE.name, "--tenants", "sampler", "--tokens-per-site", "100")
    with pytest.raises(ConfigurationError, match="--in-clear names a new folder"):
        in_directory(holder)(
            "publish", "--name", "a", "--peft", str(folder), *terms, "--in-clear", str(clear)
        )
    assert in_directory(holder)("list")["adapters"] == []
    assert len(list(folder.iterdir())) == 2


def test_a_folder_that_fills_up_takes_the_publication_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensafe_gpu.adapter_holder import in_clear as module

    def full(*_: object) -> dict[str, bytes]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "peft_of", full)
    write = module.in_clear(tmp_path / "clear")
    with pytest.raises(ConfigurationError, match="not published: No space left"), write as writing:
        writing(None)  # type: ignore[arg-type]
    assert not (tmp_path / "clear").exists()
