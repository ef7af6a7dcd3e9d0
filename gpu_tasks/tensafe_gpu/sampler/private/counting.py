"""Whether all that an answer needs was evaluated: the worker's account of a request against vLLM's output.

Of a prompt of p tokens and n sampled ones the model reads the positions 0 to p + n - 2: the last sampled
token is not fed. Each of them is computed, or lies in the prefix cache, where a request of the same opening
had computed it. vLLM computes some again, when it had preempted the request, and some behind the last one: a
stop string is found by the front end, and with asynchronous scheduling a step is on its way at any stop.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tensafe.contracts.errors import HeRefused

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput

_LOG: Final = logging.getLogger(__name__)
SKIPPED: Final = "he_not_evaluated"


@dataclass(frozen=True, slots=True)
class Counts:
    """Of one request; see `Execution`."""

    prompt_tokens: int
    cached_tokens: int
    tokens: int
    recomputed_tokens: int
    overrun_tokens: int
    evaluated_by_site: Mapping[str, int]


def counted(report: Mapping[str, Any], output: RequestOutput, sites: int) -> Counts:
    """Its counts; `report` is `Account.facts`. Raises HeRefused unless every position was evaluated.

    A request whose first rows were skipped looks like one with a longer prefix in the cache, so that is held
    to what the scheduler says it found there.
    """
    if report["failure"] is not None:
        raise HeRefused(report["failure"])
    prompt, sampled = len(output.prompt_token_ids or ()), len(output.outputs[0].token_ids)
    tokens, cached, evaluated = report["tokens"], report["cached"], report["evaluated"]
    counts = Counts(
        prompt_tokens=prompt,
        cached_tokens=cached,
        tokens=tokens,
        recomputed_tokens=tokens - (report["reached"] - cached),
        overrun_tokens=report["reached"] - (prompt + sampled - 1),
        evaluated_by_site=evaluated,
    )
    whole = (
        0 < sites == len(evaluated)
        and set(evaluated.values()) == {tokens}
        and report["first"] <= (output.num_cached_tokens or 0)
        and min(counts.recomputed_tokens, counts.overrun_tokens) >= 0
        and tokens >= max(sampled, 1)
    )
    if not whole:
        facts = {"sites": sites, "needed": prompt + sampled - 1, **report}
        _LOG.error("private sample discarded", extra=facts)
        raise HeRefused(SKIPPED)
    return counts


def together(counts: Sequence[Counts]) -> dict[str, Any]:
    """Their sums, as `Execution` has them."""
    by_site: Counter[str] = Counter()
    for one in counts:
        by_site.update(one.evaluated_by_site)
    return {
        "prompt_tokens": sum(one.prompt_tokens for one in counts),
        "cached_tokens": sum(one.cached_tokens for one in counts),
        "tokens": sum(one.tokens for one in counts),
        "recomputed_tokens": sum(one.recomputed_tokens for one in counts),
        "overrun_tokens": sum(one.overrun_tokens for one in counts),
        "evaluated_by_site": dict(by_site),
    }
