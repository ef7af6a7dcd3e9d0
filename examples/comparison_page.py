"""The page and the JSON of examples/compare_privacy.py, made from what was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from comparison_chart import Level, ModeCurve, epsilon_chart
from html_page import duration, figure, notes, page, table
from report_charts import number

Mode = Literal["bounded", "correlated", "dealt"]
NAMES: Final[dict[Mode, str]] = {
    "bounded": "bounded",
    "correlated": "bounded, correlated",
    "dealt": "dealt",
}
_TITLE: Final = "Held-out loss against ε"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Trained(_Part):
    """One private run: what it was to cost, what the ledger charged, what came out."""

    mode: Mode
    target_epsilon: float = Field(gt=0)
    epsilon: float = Field(ge=0)
    noise_multiplier: float = Field(gt=0)
    heldout: float = Field(ge=0)
    train_s: float = Field(ge=0)


class Comparison(_Part):
    """All that was measured; losses in nats per answer token of the held-out conversations."""

    title: str
    generated_at: datetime
    base_model: str
    conversations: int = Field(ge=1)
    heldout_conversations: int = Field(ge=1)
    heldout_tokens: int = Field(ge=1)
    delta: float = Field(gt=0, lt=1)
    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    base: float = Field(ge=0)
    not_private: float = Field(ge=0)
    runs: tuple[Trained, ...] = Field(min_length=1)
    facts: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """The result in words."""
        best = {mode: min(run.heldout for run in self.of(mode)) for mode in NAMES if self.of(mode)}
        reached = "; ".join(f"{NAMES[mode]} {loss:.2f}" for mode, loss in best.items())
        return (
            f"{self.steps} steps of {self.batch_size} conversations, without privacy and in three modes. "
            f"Held-out loss of the base model: {self.base:.2f} nats per answer token; without privacy: "
            f"{self.not_private:.2f}; the best of each mode: {reached}."
        )

    def of(self, mode: Mode) -> list[Trained]:
        """The runs of one mode, by epsilon."""
        return sorted((run for run in self.runs if run.mode == mode), key=lambda run: run.epsilon)


def write_comparison(measured: Comparison, folder: Path) -> Path:
    """Write comparison.html and comparison.json; the page."""
    (folder / "comparison.json").write_text(measured.model_dump_json(indent=1) + "\n", encoding="utf-8")
    written = folder / "comparison.html"
    written.write_text(render(measured), encoding="utf-8")
    return written


def render(measured: Comparison) -> str:
    """The page as text."""
    curves = [
        ModeCurve(NAMES[mode], [run.epsilon for run in runs], [run.heldout for run in runs], series)
        for series, mode in enumerate(NAMES, start=1)
        if (runs := measured.of(mode))
    ]
    levels = [Level("base model", measured.base), Level("not private", measured.not_private)]
    caption = (
        f"One run each. {measured.heldout_conversations} conversations ({measured.heldout_tokens:,} answer "
        f"tokens) that nothing was trained on; δ = {number(measured.delta)}."
    )
    chart = figure(_TITLE, epsilon_chart("epsilon", _TITLE, curves, levels), caption)
    sections = [
        f'<section class="wide">{chart}</section>',
        f'<section><h2>As a table</h2><div class="card runs">{_rows(measured)}</div></section>',
        f'<section><h2>Facts</h2><div class="card">{table((), measured.facts)}</div></section>',
        notes(measured.notes),
    ]
    return page(measured.title, measured.summary, measured.generated_at, sections)


def _rows(measured: Comparison) -> str:
    head = ("", "ε asked for", "ε charged", "noise multiplier", "held-out loss", "perplexity", "time")
    rows: list[Sequence[str]] = [("base model", "", "", "", *_losses(measured.base), "")]
    for mode, name in NAMES.items():
        for run in measured.of(mode):
            asked, charged = number(run.target_epsilon), number(run.epsilon)
            told = (name, asked, charged, number(run.noise_multiplier))
            rows.append((*told, *_losses(run.heldout), duration(run.train_s)))
    rows.append(("not private", "∞", "", "", *_losses(measured.not_private), ""))
    return table(head, rows)


def _losses(loss: float) -> tuple[str, str]:
    return f"{loss:.3f}", number(math.exp(loss))
