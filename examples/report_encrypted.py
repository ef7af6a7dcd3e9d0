"""The report's section on the adapter that an adapter holder evaluates."""

from __future__ import annotations

from html import escape

from pydantic import Field

from html_page import duration, table
from report_charts import number
from report_parts import Part, shown


class EncryptedAnswer(Part):
    """A prompt to the adapter before it was moved, and to its adapter holder; `exact` says whether every
    token is the one that the adapter's integers choose in the clear.
    """

    prompt: str
    plain: str
    private: str
    tokens: int = Field(ge=1)
    same_tokens: bool
    exact: bool


class Encrypted(Part):
    """What was measured while an adapter holder evaluated the adapter; tokens by the site asked most."""

    answers: list[EncryptedAnswer] = Field(min_length=1)
    policy: str
    extraction: str
    opening_s: float
    plain_ms_per_token: float
    private_ms_per_token: float
    attestations: int
    sites: int
    evaluated: int
    metered: int
    digest: str


def encrypted_section(encrypted: Encrypted) -> str:
    """The same questions to both, and what was counted."""
    cards = [
        f'<article class="card sample"><h3>{escape(answer.prompt)}</h3><div class="pair">'
        f"<div><h4>Weights here, in the clear</h4><blockquote>{shown(answer.plain)}</blockquote></div>"
        f"<div><h4>Weights elsewhere, encrypted</h4><blockquote>{shown(answer.private)}</blockquote>"
        "</div></div></article>"
        for answer in encrypted.answers
    ]
    exact = sum(answer.exact for answer in encrypted.answers)
    facts = [
        ("policy", encrypted.policy),
        (
            "answers whose every token the adapter's integers choose in the clear",
            f"{exact} of {len(encrypted.answers)}, {sum(a.tokens for a in encrypted.answers)} tokens",
        ),
        (
            "answers equal to those of the weights before they were rounded",
            f"{sum(answer.same_tokens for answer in encrypted.answers)} of {len(encrypted.answers)}",
        ),
        ("attestations verified offline", f"{encrypted.attestations}"),
        ("products evaluated by the adapter holder", f"{encrypted.evaluated:,} at {encrypted.sites} sites"),
        ("tokens metered", f"{encrypted.metered:,}"),
        ("time to open, preprocessing included", duration(encrypted.opening_s)),
        ("time of a token, one prompt at a time", f"{number(encrypted.private_ms_per_token)} ms"),
        ("the same with the weights here", f"{number(encrypted.plain_ms_per_token)} ms"),
        ("adapter, SHA-256", encrypted.digest),
    ]
    return (
        "<section><h2>The same adapter, held by somebody else</h2><p>Greedy on both sides (temperature 0), "
        "so that tokens can be compared; the answers above were drawn at random.</p>"
        f"{''.join(cards)}"
        f'<div class="card">{table((), facts)}<p>{escape(encrypted.extraction)}</p></div></section>'
    )
