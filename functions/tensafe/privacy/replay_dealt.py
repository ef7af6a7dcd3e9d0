"""The part of `replay` that is about dealt runs: their rows in order, as their records say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from tensafe.contracts.errors import IntegrityError
from tensafe.privacy import amplified
from tensafe.privacy.amplified import DealtGaussian
from tensafe.privacy.dealt_records import DealtRecord
from tensafe.privacy.dealt_rows import DealtRow, stated
from tensafe.privacy.records import Head

_TOLERANCE: Final = 1e-6
"""Relative; another release of dp-accounting may find the same epsilon with another last digit."""


class DealtReplay:
    """Counts a domain's dealt rows anew. `opened`: what the accountant composes, by run."""

    def __init__(self, runs: Mapping[str, DealtRecord]) -> None:
        self._runs = runs
        self._deals: dict[str, int] = {}
        self._abandoned: dict[str, int] = {}
        self.opened: dict[str, tuple[DealtGaussian, int]] = {}

    def take(self, row: DealtRow) -> bool:
        """One more row; whether it opens its run, and so moves epsilon. Raises IntegrityError."""
        run = self._runs.get(row.run_id)
        if run is None:
            raise IntegrityError(f"row {row.seq} is a dealt one, and its run is not")
        self._compare(row, run)
        if row.kind == "opening":
            self.opened[row.run_id] = (run.mechanism.gaussian, run.mechanism.max_steps)
            self._deals[row.run_id] = self._abandoned[row.run_id] = 0
            return True
        if row.index is None or row.index != self._deals.get(row.run_id):
            raise IntegrityError(f"row {row.seq} is deal {row.index} of its run out of its order")
        given_up = row.abandoned - self._abandoned[row.run_id]
        if given_up not in (0, 1) or row.index >= run.mechanism.max_steps or row.abandoned > row.index:
            raise IntegrityError(f"row {row.seq} miscounts the deals of its run")
        self._deals[row.run_id], self._abandoned[row.run_id] = row.index + 1, row.abandoned
        return False

    def finish(self, head: Head) -> None:
        """After the last row: the head and the records. Raises IntegrityError."""
        if dict(head.dealt) != self.opened or self._runs.keys() != self.opened.keys():
            raise IntegrityError("the ledger's head and its rows differ in the dealt runs")
        for run_id, run in self._runs.items():
            deals = run.deals
            in_rows = self._abandoned[run_id] + (deals.last == "abandoned")
            if (deals.dealt, deals.abandoned) != (self._deals[run_id], in_rows):
                raise IntegrityError(f"the record of run {run_id} does not agree with its rows")
            if deals.max_steps != run.mechanism.max_steps:
                raise IntegrityError(f"the record of run {run_id} allows other deals than were charged")

    def _compare(self, row: DealtRow, run: DealtRecord) -> None:
        alone = amplified.epsilon(run.mechanism.gaussian, run.mechanism.max_steps, run.mechanism.delta)
        if not math.isclose(row.run_epsilon, alone, rel_tol=_TOLERANCE):
            raise IntegrityError(
                f"row {row.seq} states epsilon {row.run_epsilon:.6f} of its run, which has {alone:.6f}"
            )
        wanted: dict[str, Any] = stated(
            run.mechanism,
            run_epsilon=row.run_epsilon,
            deal_commitment=run.deal_commitment,
            noise_key_id=run.noise_key_id,
        )
        for name, value in wanted.items():
            if getattr(row, name) != value:
                raise IntegrityError(f"row {row.seq} states another {name} than its run")
