"""What an export's header must satisfy by itself, before any row is read.

Every epsilon of a run with correlated noise rests on the sensitivity that the header states, so it is
computed again.
"""

from __future__ import annotations

from typing import Final

from tensafe.privacy.verify_correlated import coefficient_hash, is_sensitivity, sensitivity
from tensafe.privacy.verify_forms import (
    HeaderForm,
    LedgerRefused,
    MechanismForm1,
    MechanismForm2,
    MechanismForm3,
)

BISR_MODE: Final = "bounded_participation_bisr_gaussian"
_MAX_STEPS: Final = 1_000_000
_BOUNDED_ADJACENCY: Final = "add_or_remove_one_unit"


def check_runs(header: HeaderForm) -> None:
    """What the header alone must satisfy: one domain and delta, no two runs with one noise secret."""
    secrets: set[str] = set()
    dealt = any(isinstance(run.mechanism, MechanismForm3) for run in header.runs.values())
    if not dealt and header.adjacency != _BOUNDED_ADJACENCY:
        raise LedgerRefused("header", "no run of it is for this adjacency")
    for run_id, run in header.runs.items():
        mechanism = run.mechanism
        if (mechanism.domain, mechanism.delta) != (header.domain, header.delta):
            raise LedgerRefused("header", f"run {run_id} is of another domain or delta")
        if not isinstance(mechanism, MechanismForm3):
            _check_correlation(run_id, mechanism)
        if run.noise_key_id in secrets:
            raise LedgerRefused("header", f"run {run_id} draws its noise from another run's secret")
        secrets.add(run.noise_key_id)


def _check_correlation(run_id: str, mechanism: MechanismForm1 | MechanismForm2) -> None:
    """Correlated noise: its coefficients are named, and its sensitivity is that of its schedule."""
    if isinstance(mechanism, MechanismForm1):
        return
    bandwidth, stated, steps = mechanism.bisr_bandwidth, mechanism.sensitivity, mechanism.max_steps
    if mechanism.mode != BISR_MODE:
        if (bandwidth, stated, mechanism.coefficient_hash) != (None, None, None):
            raise LedgerRefused("header", f"run {run_id} has independent noise and coefficients")
        return
    if bandwidth is None or stated is None or steps is None or steps > _MAX_STEPS:
        raise LedgerRefused("header", f"run {run_id} lacks its bandwidth, sensitivity or max_steps")
    if mechanism.coefficient_hash != coefficient_hash(bandwidth):
        raise LedgerRefused("header", f"run {run_id} names other coefficients than its bandwidth's")
    most, apart = mechanism.max_participations, mechanism.min_separation
    if (most - 1) * apart >= steps:
        raise LedgerRefused("header", f"run {run_id}: {most} participations do not fit into its steps")
    computed = sensitivity(bandwidth, steps, most, min(apart, steps))
    if not is_sensitivity(stated, computed):
        raise LedgerRefused(
            "header", f"run {run_id} states sensitivity {stated:.9g}; its schedule gives {computed:.9g}"
        )
