"""The ledger computed again from an export's rows, by code of its own.

Counts every unit anew from the tags, holds every row to its run's frozen mechanism and budgets, and every
epsilon to the closed form. Neighbouring relation: add or remove one unit.
"""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from pydantic import ValidationError

from tensafe.privacy import closed_form
from tensafe.privacy.verify_attested import Attested
from tensafe.privacy.verify_dealt import DealtRuns
from tensafe.privacy.verify_forms import (
    ROW,
    HeaderForm,
    LedgerRefused,
    MechanismForm2,
    RegisteredForm,
    RowForm1,
    RowForm2,
    RowForm3,
    RowForm4,
    RowLineForm,
    RunForm,
)
from tensafe.privacy.verify_header import BISR_MODE, check_runs
from tensafe.privacy.verify_registered import registered_of, warnings_of

_TAG_HEX: Final = 32
_SAME: Final = (
    "version",
    "mode",
    "noise_multiplier",
    "clip_norm",
    "batch_size",
    "max_participations",
    "delta",
)
_SAME_2: Final = (
    *_SAME,
    "max_steps",
    "min_separation",
    "bisr_bandwidth",
    "sensitivity",
    "coefficient_hash",
)
_SAMES: Final = {1: _SAME, 2: _SAME_2, 4: (*_SAME_2, "attested_probability")}
_ACCOUNTANTS: Final = {
    "bounded_participation_independent_gaussian": "dp-accounting/gaussian-mechanism/v1",
    BISR_MODE: "dp-accounting/gaussian-mechanism/k-b-sensitivity/v1",
}


@dataclass(frozen=True, slots=True)
class VerifiedRun:
    """A run as recomputed: its largest count of any unit and its own epsilon.

    A dealt run counts no participations and shows no units: `steps` of its `max_steps` were dealt,
    `abandoned` of them given up before the last, and epsilon is that of all `max_steps`.
    """

    run_id: str
    epsilon: float
    steps: int
    participations: int | None
    max_participations: int | None
    max_epsilon: float | None
    noise_multiplier: float
    mode: str
    units: int | None
    max_steps: int | None = None
    abandoned: int | None = None
    attested_epsilon: float | None = None
    """As computed here, of the run alone, if its client samples as it says."""


@dataclass(frozen=True, slots=True)
class Report:
    """What has been verified. `epsilon` is recomputed, at `delta`, of everything the rows released."""

    tenant: str
    domain: str
    delta: float
    adjacency: str
    epsilon: float
    rows: int
    head_hash: str
    exported_at_ms: int
    signed_by: tuple[str, ...]
    runs: tuple[VerifiedRun, ...]
    registered: RegisteredForm | None = None
    """Of a registered domain: terms, N, Merkle root and digest of its manifest. No row passes its budget."""
    warnings: tuple[str, ...] = ()
    """What that registration allows and everybody must know (`verify_registered.warnings_of`)."""


@dataclass(slots=True)
class _Run:
    """What has been counted of a run. `counts`: participations of each tag (hexadecimal)."""

    form: RunForm
    counts: dict[str, int] = field(default_factory=dict)
    last_index: dict[str, int] = field(default_factory=dict)
    """Of the steps of this run, the last one that each unit was in; empty without a separation."""
    largest: int = 0
    steps: int = 0
    last_step: int = -1

    @property
    def mu_squared(self) -> float:
        """Of what the run has released: m / sigma^2, or with correlated noise (s / sigma)^2 at once."""
        mechanism = self.form.mechanism
        sigma = mechanism.noise_multiplier
        if isinstance(mechanism, MechanismForm2) and mechanism.sensitivity is not None:
            return (mechanism.sensitivity / sigma) ** 2 if self.largest else 0.0
        return self.largest / sigma / sigma


class Replay:
    """The ledger computed again, row by row."""

    def __init__(self, header: HeaderForm) -> None:
        scope = f"domain/{header.tenant}/{header.domain}"
        text = json.dumps(
            {"version": 1, "scope": scope, "delta": header.delta}, sort_keys=True, separators=(",", ":")
        )
        self._header = header
        self._runs = {run_id: _Run(form) for run_id, form in header.runs.items() if isinstance(form, RunForm)}
        self._dealt = DealtRuns(header)
        self._attested = Attested()
        self._mu_squared = 0.0
        self._domain = _Stated()
        self._alone = _Stated()
        self._names: list[str] = []
        self.previous = hashlib.sha256(text.encode()).hexdigest()
        self.signers: set[str] = set()
        check_runs(header)
        self._registered = registered_of(header)

    @property
    def rows(self) -> int:
        return len(self._names)

    @property
    def is_whole(self) -> bool:
        """Whether as many rows were taken as the signed header says."""
        return self.rows == self._header.head.rows

    def name(self, index: int) -> str:
        return self._names[index]

    def take(self, line: RowLineForm, where: str) -> None:
        """One more row: its hash, its link, its run's mechanism, its counts, its budgets."""
        text_hash = hashlib.sha256(line.row.encode()).hexdigest()
        if text_hash != line.hash:
            raise LedgerRefused(where, "its text does not match its hash")
        try:
            row = ROW.validate_json(line.row)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise LedgerRefused(where, f"{place[:200]}: {first['msg']}") from None
        if row.seq != self.rows + 1:
            raise LedgerRefused(where, f"missing or moved: the file has row {row.seq} in its place")
        where = f"{where} (run {row.run_id}, step {row.step})"
        if row.previous != self.previous:
            raise LedgerRefused(where, "it does not follow the row before it")
        if isinstance(row, RowForm3):
            self._take_dealt(row, line, where)
            return
        run = self._runs.get(row.run_id)
        if run is None:
            raise LedgerRefused(where, "the header does not know its run")
        self._check_mechanism(row, run, where)
        tags = [line.tags[at : at + _TAG_HEX] for at in range(0, len(line.tags), _TAG_HEX)]
        before = run.mu_squared
        self._count(row, run, tags, where)
        if isinstance(row, RowForm4):
            self._attested.take(row, run.steps, where)
        after = run.mu_squared
        self._mu_squared += after - before
        if self._dealt.opened:
            self._dealt.check_total(row.epsilon, self._mu_squared, where)
        else:
            self._domain.add(row.epsilon, self._mu_squared, self.rows)
        self._alone.add(row.run_epsilon, after, self.rows)
        limit = run.form.mechanism.max_epsilon
        if limit is not None and tags and row.epsilon > limit:
            raise LedgerRefused(where, f"epsilon {row.epsilon:.6g} is over the run's max_epsilon {limit:g}")
        if tags:
            self._check_budget(row.epsilon, where)
        self.previous = line.hash
        self._names.append(where)

    def _check_budget(self, epsilon: float, where: str) -> None:
        """Of the registered domain; what was charged before had to be within it, too."""
        limit = math.inf if self._registered is None else self._registered.terms.max_epsilon
        if epsilon > limit:
            raise LedgerRefused(where, f"epsilon {epsilon:.6g} is over the domain's max_epsilon {limit:g}")

    def _take_dealt(self, row: RowForm3, line: RowLineForm, where: str) -> None:
        if line.tags:
            raise LedgerRefused(where, "a dealt row brings no units")
        self._dealt.take(row, where)
        limit = self._header.runs[row.run_id].mechanism.max_epsilon
        if row.kind == "opening" and limit is not None and row.epsilon > limit:
            raise LedgerRefused(where, f"epsilon {row.epsilon:.6g} is over the run's max_epsilon {limit:g}")
        self._check_budget(row.epsilon, where)
        self._dealt.check_total(row.epsilon, self._mu_squared, where)
        self.previous = line.hash
        self._names.append(where)

    def finish(self) -> None:
        """After the last row: the header's head, and every epsilon at once."""
        for stated, what in ((self._domain, "epsilon"), (self._alone, "run_epsilon")):
            wrong = stated.first_wrong(self._header.delta)
            if wrong is not None:
                raise LedgerRefused(
                    self._names[stated.rows[wrong]],
                    f"it states {what} {stated.stated[wrong]:.9g}; the replay gives "
                    f"{closed_form.epsilon_of(stated.mu_squared[wrong], self._header.delta):.9g}",
                )
        self._dealt.finish()
        self._attested.finish()
        if self.previous != self._header.head.hash:
            raise LedgerRefused(f"row {self.rows}", "it is not the head that the header names")

    def report(self, signed_by: tuple[str, ...]) -> Report:
        delta = self._header.delta
        runs = []
        terms = []
        for run_id, run in sorted(self._runs.items()):
            mechanism = run.form.mechanism
            terms.append(run.mu_squared)
            runs.append(
                VerifiedRun(
                    run_id=run_id,
                    epsilon=closed_form.epsilon_of(terms[-1], delta),
                    steps=run.steps,
                    participations=run.largest,
                    max_participations=mechanism.max_participations,
                    max_epsilon=mechanism.max_epsilon,
                    noise_multiplier=mechanism.noise_multiplier,
                    mode=mechanism.mode,
                    units=len(run.counts),
                    attested_epsilon=self._attested.epsilon_of(run_id),
                )
            )
        for run_id, (form, dealt, abandoned, alone) in self._dealt.counted().items():
            runs.append(
                VerifiedRun(
                    run_id=run_id,
                    epsilon=alone,
                    steps=dealt,
                    participations=None,
                    max_participations=None,
                    max_epsilon=form.mechanism.max_epsilon,
                    noise_multiplier=form.mechanism.noise_multiplier,
                    mode=form.mechanism.mode,
                    units=None,
                    max_steps=form.mechanism.max_steps,
                    abandoned=abandoned,
                )
            )
        return Report(
            tenant=self._header.tenant,
            domain=self._header.domain,
            delta=delta,
            adjacency=self._header.adjacency,
            epsilon=self._dealt.total(math.fsum(terms)),
            rows=self.rows,
            head_hash=self.previous,
            exported_at_ms=self._header.exported_at_ms,
            signed_by=signed_by,
            runs=tuple(sorted(runs, key=lambda run: run.run_id)),
            registered=self._registered,
            warnings=() if self._registered is None else warnings_of(self._registered),
        )

    def _check_mechanism(self, row: RowForm1 | RowForm2, run: _Run, where: str) -> None:
        form = run.form.mechanism
        for name in _SAMES[row.version]:
            if getattr(row, name) != getattr(form, name, None):
                raise LedgerRefused(where, f"{name} is not that of the run's frozen mechanism")
        if row.accountant != _ACCOUNTANTS[row.mode]:
            raise LedgerRefused(where, "accountant is not that of the run's mode")
        if isinstance(row, RowForm2) and row.index != run.steps:
            raise LedgerRefused(
                where, f"it is step {run.steps} of its run, and names the noise of {row.index}"
            )
        if row.noise_key_id != run.form.noise_key_id:
            raise LedgerRefused(where, "noise_key_id is not that of its run")
        if row.step <= run.last_step:
            raise LedgerRefused(where, f"the run's steps go back from {run.last_step}")
        run.steps, run.last_step = run.steps + 1, row.step
        if form.max_steps is not None and run.steps > form.max_steps:
            raise LedgerRefused(where, f"the run has taken more than its max_steps={form.max_steps}")

    def _count(self, row: RowForm1 | RowForm2, run: _Run, tags: list[str], where: str) -> None:
        if len(tags) != row.units or (tags and len(tags[-1]) != _TAG_HEX):
            raise LedgerRefused(where, f"it says {row.units} units and brings {len(tags)}")
        counts, largest, last = run.counts, run.largest, ""
        for tag in tags:
            if tag <= last:
                raise LedgerRefused(where, "its units are not each there once, in order")
            last = tag
            counts[tag] = count = counts.get(tag, 0) + 1
            largest = max(largest, count)
        run.largest = largest
        self._check_separation(run, tags, where)
        limit = run.form.mechanism.max_participations
        if largest > limit:
            raise LedgerRefused(where, f"a unit takes part {largest} times; at most {limit} are allowed")
        if row.participations != largest:
            raise LedgerRefused(
                where, f"it says that a unit took part {row.participations} times at most; it is {largest}"
            )

    def _check_separation(self, run: _Run, tags: list[str], where: str) -> None:
        form = run.form.mechanism
        if form.version == 1 or form.min_separation == 1:
            return
        index = run.steps - 1
        for tag in tags:
            last = run.last_index.get(tag)
            if last is not None and index - last < form.min_separation:
                raise LedgerRefused(
                    where,
                    f"a unit returns after {index - last} steps; min_separation={form.min_separation}",
                )
            run.last_index[tag] = index


class _Stated:
    """Stated epsilons of some rows beside what they must follow from, 24 bytes a row."""

    def __init__(self) -> None:
        self.stated = array("d")
        self.mu_squared = array("d")
        self.rows = array("q")

    def add(self, stated: float, mu_squared: float, row: int) -> None:
        self.stated.append(stated)
        self.mu_squared.append(mu_squared)
        self.rows.append(row)

    def first_wrong(self, delta: float) -> int | None:
        if not self.stated:
            return None
        stated, mu_squared = np.array(self.stated), np.array(self.mu_squared)
        right = closed_form.is_epsilon(stated, mu_squared, delta)
        return None if right.all() else int(np.argmin(right))
