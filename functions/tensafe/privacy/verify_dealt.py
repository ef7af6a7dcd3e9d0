"""Dealt runs of an export: their rows in order, as the header says, and every epsilon computed again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tensafe.privacy import closed_form, verify_amplified
from tensafe.privacy.verify_amplified import Sampled
from tensafe.privacy.verify_forms import DealtRunForm, HeaderForm, LedgerRefused, RowForm3

_SAME: Final = (
    "version",
    "mode",
    "adjacency",
    "noise_multiplier",
    "clip_norm",
    "batch_size",
    "sampling_probability",
    "batch_cap",
    "max_steps",
    "manifest_digest",
    "fixed_in_advance",
    "delta",
)
_ADD_OR_REMOVE: Final = "add_or_remove_one_unit"


@dataclass(slots=True)
class _Run:
    """What has been counted of a run; `dealt` is None before its opening."""

    form: DealtRunForm
    dealt: int | None = None
    abandoned: int = 0


class DealtRuns:
    """The dealt runs of one export, row by row."""

    def __init__(self, header: HeaderForm) -> None:
        self._delta = header.delta
        self._runs = {
            run_id: _Run(form) for run_id, form in header.runs.items() if isinstance(form, DealtRunForm)
        }
        self._sampled: frozenset[Sampled] = frozenset()
        self._openings = 0
        for run_id, run in self._runs.items():
            _check_header(header, run_id, run.form)

    @property
    def opened(self) -> bool:
        """Whether the domain's epsilon is one of loss distributions from here on."""
        return bool(self._sampled)

    def take(self, row: RowForm3, where: str) -> None:
        """One more row of a dealt run. Raises LedgerRefused."""
        run = self._runs.get(row.run_id)
        if run is None:
            raise LedgerRefused(where, "the header does not know its run as a dealt one")
        mechanism = run.form.mechanism
        for name in _SAME:
            if getattr(row, name) != getattr(mechanism, name):
                raise LedgerRefused(where, f"{name} is not that of the run's frozen mechanism")
        if row.units_of_domain != mechanism.units:
            raise LedgerRefused(where, "units_of_domain is not that of the run's frozen mechanism")
        for name in ("deal_commitment", "noise_key_id"):
            if getattr(row, name) != getattr(run.form, name):
                raise LedgerRefused(where, f"{name} is not that of its run")
        self._count(row, run, where)
        alone = self._epsilon(frozenset({_sampled(run.form)}), 0.0)
        if not verify_amplified.is_epsilon(row.run_epsilon, alone):
            raise _wrong(where, "run_epsilon", row.run_epsilon, alone)

    def check_total(self, stated: float, mu_squared: float, where: str) -> None:
        """A row's epsilon of the whole domain, bounded runs with this mu^2 included."""
        total = self._epsilon(self._sampled, mu_squared)
        if not verify_amplified.is_epsilon(stated, total):
            raise _wrong(where, "epsilon", stated, total)

    def total(self, mu_squared: float) -> float:
        """Epsilon of the domain as computed here."""
        if self._sampled:
            return self._epsilon(self._sampled, mu_squared)
        return closed_form.epsilon_of(mu_squared, self._delta)

    def counted(self) -> Mapping[str, tuple[DealtRunForm, int, int, float]]:
        """By run: its form, deals, those abandoned before the last one, and the run's own epsilon."""
        return {
            run_id: (
                run.form,
                run.dealt or 0,
                run.abandoned,
                self._epsilon(frozenset({_sampled(run.form)}), 0.0) if run.dealt is not None else 0.0,
            )
            for run_id, run in self._runs.items()
        }

    def finish(self) -> None:
        """After the last row: every dealt run has its opening. Raises LedgerRefused."""
        for run_id, run in self._runs.items():
            if run.dealt is None:
                raise LedgerRefused("header", f"dealt run {run_id} has no row that opens it")

    def _count(self, row: RowForm3, run: _Run, where: str) -> None:
        limit = run.form.mechanism.max_steps
        if row.kind == "opening":
            self._refuse_late(row, where)
            if run.dealt is not None or (row.step, row.index, row.abandoned) != (0, None, 0):
                raise LedgerRefused(where, "its run is open already, or it is no opening")
            run.dealt = 0
            self._openings += 1
            self._sampled = _with(self._sampled, _sampled(run.form))
            return
        if run.dealt is None or row.index != run.dealt or row.step != run.dealt + 1:
            raise LedgerRefused(where, f"it is deal {row.index} of its run, out of its order")
        if row.index >= limit:
            raise LedgerRefused(where, f"the run deals more than the {limit} steps that are charged")
        if row.abandoned - run.abandoned not in (0, 1) or row.abandoned > row.index:
            raise LedgerRefused(where, f"it says that {row.abandoned} deals were abandoned before it")
        run.dealt, run.abandoned = run.dealt + 1, row.abandoned

    def _refuse_late(self, row: RowForm3, where: str) -> None:
        """Loss distributions compose only if no output had a part in choosing what composes."""
        if row.seq - 1 > self._openings and not row.fixed_in_advance:
            raise LedgerRefused(where, "its run opens after a release and is not declared fixed_in_advance")

    def _epsilon(self, sampled: frozenset[Sampled], mu_squared: float) -> float:
        return verify_amplified.epsilon_of(sampled, mu_squared, self._delta)


def _check_header(header: HeaderForm, run_id: str, form: DealtRunForm) -> None:
    mechanism = form.mechanism
    if mechanism.adjacency != header.adjacency:
        raise LedgerRefused("header", f"run {run_id} is for another adjacency")
    if mechanism.batch_cap > mechanism.units:
        raise LedgerRefused("header", f"run {run_id} has a batch_cap over the number of units")


def _sampled(form: DealtRunForm) -> Sampled:
    mechanism = form.mechanism
    units = mechanism.units + (mechanism.adjacency == _ADD_OR_REMOVE)
    return Sampled(
        units,
        mechanism.sampling_probability,
        mechanism.batch_cap,
        mechanism.noise_multiplier,
        mechanism.max_steps,
    )


def _with(sampled: frozenset[Sampled], one: Sampled) -> frozenset[Sampled]:
    """One more run's steps; those of an equal mechanism are added to it."""
    law = (one.units, one.probability, one.cap, one.sigma)
    same = [other for other in sampled if (other.units, other.probability, other.cap, other.sigma) == law]
    steps = one.steps + sum(other.steps for other in same)
    return (sampled - frozenset(same)) | {Sampled(*law, steps)}


def _wrong(where: str, what: str, stated: float, computed: float) -> LedgerRefused:
    return LedgerRefused(where, f"it states {what} {stated:.9g}; the replay gives {computed:.9g}")
