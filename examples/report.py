"""The demo's report: one HTML file that needs nothing else, made from a plain dictionary.

`write_report(data, path)` takes what `Report` describes (unknown and missing keys are refused by name):

    {"title": ..., "summary": ..., "generated_at": ISO 8601,
     "steps": [{"step": 1, "loss": 5.1, "epsilon": 0.4}, ...],
     "events": [{"step": 12, "label": "trainer killed", "detail": "SIGKILL ... went on after 3.1 s"}],
     "heldout": {"before": 5.2, "after": 4.6, "conversations": 130, "tokens": 2100},
     "privacy": {"epsilon": 7.9, "delta": 1e-4, "max_epsilon": 8.0, "unit": "one conversation",
                 "noise_multiplier": 2.1, "clip_norm": 1.0, "max_participations": 12, "domain": "..."},
     "samples": [{"prompt": ..., "before": ..., "after": ...}],
     "encrypted": {"answers": [{"prompt": ..., "plain": ..., "private": ..., "tokens": 24,
                                "same_tokens": true, "exact": true}],
                   "policy": "HE_REQUIRED", "extraction": ..., "opening_s": 5.1, "plain_ms_per_token": 9.0,
                   "private_ms_per_token": 21.0, "attestations": 4, "sites": 16, "evaluated": 1600,
                   "metered": 150, "digest": ...},
     "facts": [["model", "tensafe/demo-qwen3, 2.8 M parameters"], ...],
     "timings": [["base model", 61.0], ["training", 42.5]],
     "notes": ["..."]}
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Final

from pydantic import Field

from html_page import duration, figure, notes, page, table
from report_charts import Curve, Limit, Marker, line_chart, number, two_bars
from report_encrypted import Encrypted, encrypted_section
from report_parts import Part, shown

_CAPTIONS: Final = {
    "loss": "Mean over each batch. Not differentially private: for the owner of the data only.",
    "epsilon": "What the released adapter can reveal about one unit, as the ledger certifies it.",
}


class Step(Part):
    """One optimizer step: mean loss per answer token of its batch, and epsilon after it."""

    step: int = Field(ge=1)
    loss: float
    epsilon: float = Field(ge=0)


class Event(Part):
    """Something that happened after `step`; `label` is short (in the chart), `detail` a sentence."""

    step: int = Field(ge=0)
    label: str
    detail: str


class Heldout(Part):
    """Mean loss in nats per answer token on conversations that were not trained on."""

    before: float = Field(ge=0)
    after: float = Field(ge=0)
    conversations: int = Field(ge=1)
    tokens: int = Field(ge=1)


class Privacy(Part):
    """What is claimed, as the ledger said it."""

    epsilon: float = Field(ge=0)
    delta: float = Field(gt=0, lt=1)
    max_epsilon: float | None = None
    unit: str
    noise_multiplier: float = Field(gt=0)
    clip_norm: float = Field(gt=0)
    max_participations: int = Field(ge=1)
    domain: str


class Sample(Part):
    """The same prompt to the base model and to the trained adapter."""

    prompt: str
    before: str
    after: str


class Report(Part):
    """Everything the page shows."""

    title: str
    summary: str
    generated_at: datetime
    steps: list[Step] = Field(min_length=1)
    events: list[Event] = Field(default=[])
    heldout: Heldout
    privacy: Privacy
    samples: list[Sample]
    encrypted: Encrypted | None = None
    facts: list[tuple[str, str]]
    timings: list[tuple[str, float]]
    """Label and seconds."""
    notes: list[str] = Field(default=[])


def write_report(data: Mapping[str, object], path: Path) -> Path:
    """Check `data`, write the page. Raises pydantic.ValidationError that names what is missing or wrong."""
    page = render(Report.model_validate(data))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def render(report: Report) -> str:
    """The page as text."""
    sections = [
        _tiles(report),
        _charts(report),
        _samples(report.samples),
        "" if report.encrypted is None else encrypted_section(report.encrypted),
        _tables(report),
        notes(report.notes),
    ]
    return page(report.title, report.summary, report.generated_at, sections)


def _tiles(report: Report) -> str:
    heldout, privacy = report.heldout, report.privacy
    change = math.exp(heldout.after - heldout.before) - 1
    perplexities = f"{number(math.exp(heldout.before))} → {number(math.exp(heldout.after))}"
    limit = "" if privacy.max_epsilon is None else f"budget {number(privacy.max_epsilon)}, "
    total_s = sum(seconds for _, seconds in report.timings)
    tiles = [
        ("privacy loss ε", number(privacy.epsilon), f"{limit}δ = {number(privacy.delta)}"),
        ("held-out loss", number(heldout.after), f"from {number(heldout.before)} nats a token"),
        (
            "held-out perplexity",
            f"{change:+.0%}".replace("-", "\u2212"),
            perplexities,
        ),
        ("steps", number(len(report.steps)), f"unit: {privacy.unit}"),
        ("wall time", duration(total_s), "all stages together"),
    ]
    cells = [
        f'<div class="tile"><dt>{escape(name)}</dt><dd><strong>{escape(value)}</strong>'
        f"<span>{escape(note)}</span></dd></div>"
        for name, value, note in tiles
    ]
    return f'<dl class="tiles">{"".join(cells)}</dl>'


def _charts(report: Report) -> str:
    steps = [float(step.step) for step in report.steps]
    losses = [step.loss for step in report.steps]
    epsilons = [step.epsilon for step in report.steps]
    markers = [Marker(event.step, event.label) for event in report.events]
    budget = report.privacy.max_epsilon
    limits = [] if budget is None else [Limit(budget, f"max_epsilon = {number(budget)}")]
    loss = Curve(
        "loss",
        "Training loss",
        f"Mean loss per answer token, from {number(losses[0])} to {number(losses[-1])}.",
        steps,
        losses,
        "nats per token",
        series=1,
        markers=markers,
    )
    epsilon = Curve(
        "epsilon",
        "Privacy loss ε",
        f"Epsilon grows to {number(epsilons[-1])} at delta {number(report.privacy.delta)}.",
        steps,
        epsilons,
        "ε",
        series=2,
        from_zero=True,
        markers=markers,
        limits=limits,
    )
    heldout = report.heldout
    bars = [
        (
            "before",
            heldout.before,
            f"{number(heldout.before)} nats, perplexity {number(math.exp(heldout.before))}",
        ),
        (
            "after",
            heldout.after,
            f"{number(heldout.after)} nats, perplexity {number(math.exp(heldout.after))}",
        ),
    ]
    data = table(
        ("step", "loss", "ε"),
        [(str(s.step), number(s.loss), number(s.epsilon)) for s in report.steps],
        numeric=True,
    )
    seen = f"{heldout.conversations} conversations ({heldout.tokens:,} answer tokens) never trained on."
    figures = [
        figure(loss.title, line_chart(loss), _CAPTIONS["loss"]),
        figure(epsilon.title, line_chart(epsilon), _CAPTIONS["epsilon"]),
        figure("Held-out loss", two_bars("heldout", "Held-out loss", bars), seen),
        _events(report.events),
    ]
    return (
        f'<section class="charts" aria-label="Curves">{"".join(figures)}</section>'
        f'<details class="card"><summary>The curves as a table</summary>{data}</details>'
    )


def _events(events: Sequence[Event]) -> str:
    if not events:
        return ""
    rows = [
        f"<li><b>Step {event.step}: {escape(event.label)}.</b> {escape(event.detail)}</li>"
        for event in events
    ]
    return f'<div class="card events"><h2>What happened on the way</h2><ul>{"".join(rows)}</ul></div>'


def _samples(samples: Sequence[Sample]) -> str:
    cards = [
        f'<article class="card sample"><h3>{escape(sample.prompt)}</h3><div class="pair">'
        f"<div><h4>Base model</h4><blockquote>{shown(sample.before)}</blockquote></div>"
        f"<div><h4>With the private adapter</h4><blockquote>{shown(sample.after)}</blockquote></div>"
        "</div></article>"
        for sample in samples
    ]
    return f"<section><h2>The same question, before and after</h2>{''.join(cards)}</section>" if cards else ""


def _tables(report: Report) -> str:
    privacy = report.privacy
    facts = [
        *report.facts,
        ("noise multiplier", number(privacy.noise_multiplier)),
        ("clip norm", number(privacy.clip_norm)),
        ("participations of a unit", f"at most {privacy.max_participations}"),
        ("δ", number(privacy.delta)),
        ("ledger domain", privacy.domain),
    ]
    timings = [(name, duration(seconds)) for name, seconds in report.timings]
    return (
        '<section class="tables">'
        f'<div class="card"><h2>Facts</h2>{table((), facts)}</div>'
        f'<div class="card"><h2>Time</h2>{table((), timings)}</div></section>'
    )
