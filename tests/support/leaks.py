"""Looks for plaintext in captured bytes: at any offset, in every form in which a number may be written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

RUN_BYTES = 32
"""What counts as a leak: so many bytes in a row. 8 numbers of 32 bits, 16 of 16 bits, 4 of 64 bits."""
_PROBE = 8
_BITS = 24

Needles = Mapping[str, Iterable[bytes]]
"""By the name of the form."""


def number_forms(values: npt.NDArray[np.float64] | npt.NDArray[np.int64]) -> dict[str, bytes]:
    """A row of numbers in the forms of a machine; integers where all of them are whole."""
    wide = np.asarray(values, dtype=np.float64)
    single = wide.astype("<f4")
    forms = {
        "float32": single.tobytes(),
        "float32, big-endian": single.astype(">f4").tobytes(),
        "float64": wide.astype("<f8").tobytes(),
        "bfloat16": (single.view("<u4") >> 16).astype("<u2").tobytes(),
    }
    with np.errstate(over="ignore"):
        forms["float16"] = wide.astype("<f2").tobytes()
    if np.array_equal(wide, np.rint(wide)):
        whole = wide.astype(np.int64)
        for kind in ("<i2", "<i4", "<i8", ">i4", ">i8"):
            if np.array_equal(whole.astype(kind).astype(np.int64), whole):
                forms[f"integers {kind}"] = whole.astype(kind).tobytes()
    return forms


def text_forms(text: str) -> dict[str, bytes]:
    """A text in the encodings in which it may travel."""
    escaped = text.encode("ascii", "backslashreplace")
    return {"utf-8": text.encode(), "utf-16": text.encode("utf-16-le"), "escaped": escaped}


def token_forms(tokens: Sequence[int]) -> dict[str, bytes]:
    """Token ids as numbers, and as JSON and Python write them."""
    forms = {name: data for name, data in number_forms(np.array(tokens)).items() if "integers" in name}
    return forms | {"decimal": ",".join(map(str, tokens)).encode(), "list": str(list(tokens)).encode()}


def leaks(capture: bytes, needles: Needles) -> list[str]:
    """Names of the forms of which a run of RUN_BYTES, or a whole shorter needle, stands in the capture.

    Runs begin at every multiple of RUN_BYTES of a needle; what is all one byte says nothing and is left out.
    """
    runs: dict[bytes, list[tuple[bytes, str]]] = {}
    for name, found in needles.items():
        for run in (run for needle in found for run in runs_of(needle)):
            runs.setdefault(run[:_PROBE], []).append((run, name))
    probes = np.frombuffer(b"".join(runs), dtype="<u8")
    known = np.zeros(1 << _BITS, dtype=bool)
    known[_hashed(probes)] = True
    ordered, names = np.sort(probes), set()
    for offset in range(_PROBE):
        whole = (len(capture) - offset) // _PROBE
        words = np.frombuffer(capture, dtype="<u8", count=max(0, whole), offset=offset)
        candidates = np.flatnonzero(known[_hashed(words)])
        places = np.searchsorted(ordered, words[candidates]).clip(max=len(ordered) - 1)
        for word in candidates[ordered[places] == words[candidates]].tolist():
            begin = offset + _PROBE * word
            for run, name in runs[capture[begin : begin + _PROBE]]:
                if capture[begin : begin + len(run)] == run:
                    names.add(name)
    return sorted(names)


def _hashed(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    return (words * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - _BITS)


def runs_of(needle: bytes) -> Iterator[bytes]:
    """What is searched for of a needle."""
    for begin in range(0, max(1, len(needle) - RUN_BYTES + 1), RUN_BYTES):
        run = needle[begin : begin + RUN_BYTES]
        if len(run) >= _PROBE and len(set(run)) > 3:
            yield run
