"""An address that a publisher may give is one that a sampler can connect to, and none other is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tensafe.contracts import holder_address
from tensafe.contracts.errors import InvalidRequest
from tensafe.operations.placements import check_address
from tensafe_gpu.helora.ports import MISCONFIGURED, HeUnavailable
from tensafe_gpu.sampler.private.connecting import connect

FORM = r"unix:PATH or tcp:HOST:PORT with a port of 1 to 65535"
LABEL = 63 * "a"


@pytest.mark.parametrize(
    "address",
    [
        "", "/run/s", "unix:", "unix:/a\0b", "tcp:", "tcp:localhost", "tcp:h:", "tcp::7443", "tcp:h:https",
        "tcp:h:0", "tcp:h:65536", "tcp:h:99999", "tcp:h:-1", "tcp:h:1 ", "tcp: h:1", "tcp:h:\u0667",
        "tcp:https://h:443", "tcp:h/path:443", "tcp:user@h:443", "tcp:h:80:443", "tcp:[::1]:7443", "tcp:..:1",
        f"tcp:{LABEL}a:1", f"tcp:{LABEL}.{LABEL}.{LABEL}.{LABEL}:1", "udp:h:1", "tcp:h.:1",
    ],
)  # fmt: skip
def test_a_malformed_address_is_refused_where_it_is_given_as_where_it_is_used(
    address: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequest, match=FORM) as it:
        check_address(address)
    assert it.value.field == "holder"
    told = {"tenant": "t", "adapter": "a", "version": "1", "burn_log": str(tmp_path / "burned.db")}
    with pytest.raises(HeUnavailable, match=FORM) as refused:
        connect({"address": address, **told})
    assert refused.value.code == MISCONFIGURED


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("unix:/run/s", Path("/run/s")),
        ("tcp:adapter-holder.tensafe.internal:7443", ("adapter-holder.tensafe.internal", 7443)),
        ("tcp:my_holder:1", ("my_holder", 1)),
        ("tcp:b\u00fccher.example:65535", ("b\u00fccher.example", 65535)),
        ("tcp:127.0.0.1:7443", ("127.0.0.1", 7443)),
        ("tcp:::1:7443", ("::1", 7443)),
    ],
)
def test_an_address_is_a_path_or_a_host_and_a_port(address: str, found: object) -> None:
    check_address(address)
    assert holder_address.parse(address) == found


def test_a_path_that_no_sampler_would_find_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="from the root"):
        check_address("unix:run/s")
    with pytest.raises(InvalidRequest, match="at most 107 bytes, and this one has 108"):
        check_address("unix:/" + 107 * "x")
