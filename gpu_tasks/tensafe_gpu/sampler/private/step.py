"""The rows of one forward pass by request, and what was evaluated for each request.

The map is built once per step, before the layers run, from the *name* that each request carries: ids are
assigned by whoever loads an adapter, and a map by id matches nothing when somebody else did.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import torch

from tensafe_gpu.sampler.private.adapter import external_id, name_in
from tensafe_gpu.sampler.private.budget import Budget
from tensafe_gpu.sampler.private.counting import SKIPPED
from tensafe_gpu.sampler.private.holders import OpenAdapter, OpenAdapters

if TYPE_CHECKING:
    from vllm.v1.worker.gpu_input_batch import CachedRequestState

_MOST_ACCOUNTS: Final = 8192
"""A step that was in flight when its request ended opens an account that nobody asks for."""
NOT_OPEN: Final = "he_adapter_holder_absent"
NOT_FINITE: Final = "he_activations_not_finite"

Rows = slice | torch.Tensor


@dataclass(slots=True)
class Account:
    """What ran for one request: rows of forward passes, their positions, and rows evaluated at each site."""

    tokens: int = 0
    first: int = 0
    """The position of its first row: so many tokens of its prompt were in the prefix cache."""
    cached: int = 0
    """Positions that were in the prefix cache, `first` and what a preempted request found there."""
    reached: int = 0
    """Every position before this one was computed or cached."""
    evaluated: Counter[str] = field(default_factory=Counter)
    failure: str | None = None
    """The code of the first failure: from then on its deltas were zero, and its output means nothing."""

    def ran(self, span: Span) -> None:
        """A pass runs these rows. A position that none has run fails the request."""
        if self.tokens == 0:
            self.first = self.cached = self.reached = span.position
        elif span.position > self.reached:
            if not span.resumed:
                self.failure = self.failure or SKIPPED
            self.cached += span.position - self.reached
        self.tokens += span.count
        self.reached = max(self.reached, span.position + span.count)

    def facts(self) -> dict[str, Any]:
        """For the sampler."""
        return {
            "failure": self.failure,
            "tokens": self.tokens,
            "first": self.first,
            "cached": self.cached,
            "reached": self.reached,
            "evaluated": dict(self.evaluated),
        }


@dataclass(frozen=True, slots=True)
class Span:
    """Rows [start, stop) of the pass belong to one request of a private adapter.

    They are its tokens from `position` on; `resumed` after it had been preempted.
    """

    name: str
    request: str
    start: int
    stop: int
    position: int
    resumed: bool = False

    @property
    def count(self) -> int:
        return self.stop - self.start


@dataclass(slots=True)
class Group:
    """All rows of one private adapter in a pass."""

    adapter: OpenAdapter
    rows: Rows
    count: int
    accounts: list[tuple[Account, int]]
    budget: Budget

    def fail(self, code: str) -> None:
        """Every request with a row here has lost its meaning."""
        for account, _ in self.accounts:
            account.failure = account.failure or code

    def fail_rows(self, bad: npt.NDArray[np.bool_]) -> None:
        """Only the requests with a bad row have, bool [count]: its activations or products are no numbers."""
        first = 0
        for account, tokens in self.accounts:
            if bad[first : first + tokens].any():
                account.failure = account.failure or NOT_FINITE
            first += tokens

    def evaluated(self, site: str) -> None:
        for account, tokens in self.accounts:
            account.evaluated[site] += tokens


def spans_of(
    batch: Sequence[str],
    requests: Mapping[str, CachedRequestState],
    scheduled: npt.NDArray[np.int32],
    resumed: Collection[str],
) -> Iterator[Span]:
    """The private requests of vLLM's batch, whose ids and rows `batch` and `scheduled` hold in order.

    `resumed` are the ids of those that had been preempted.
    """
    start = 0
    for request_id, count in zip(batch, scheduled.tolist(), strict=False):
        request = requests.get(request_id)
        params = None if request is None else request.sampling_params
        name = None if params is None else name_in(params.extra_args)
        if name is not None and request is not None:
            position = request.num_computed_tokens
            again = request_id in resumed
            yield Span(name, external_id(request_id), start, start + count, position, again)
        start += count


class Step:
    """The pass that runs now. One per worker; all calls come from its main thread."""

    def __init__(self) -> None:
        self.groups: Sequence[Group] = ()
        self._accounts: OrderedDict[str, Account] = OrderedDict()

    def begin(self, spans: Sequence[Span], adapters: OpenAdapters) -> None:
        """Set up the next pass; never raises, since an error here ends the engine for everybody."""
        by_name: dict[str, list[Span]] = {}
        for span in spans:
            by_name.setdefault(span.name, []).append(span)
        groups = []
        for name, members in by_name.items():
            accounts = []
            for span in members:
                account = self._account(span)
                account.ran(span)
                accounts.append((account, span.count))
            adapter = adapters.get(name) or OpenAdapter(name, failure=NOT_OPEN)
            count = sum(tokens for _, tokens in accounts)
            budget = Budget(count, adapters.pass_s)
            group = Group(adapter, _rows(members), count, accounts, budget)
            if adapter.usable:
                groups.append(group)
            else:
                group.fail(adapter.failure or NOT_OPEN)
        self.groups = groups

    def rest(self) -> None:
        """The next pass is none of a request: nothing is evaluated in it."""
        self.groups = ()

    def report(self, request: str) -> dict[str, Any]:
        """The account of a request that has ended; it is closed."""
        return self._accounts.pop(request, Account()).facts()

    def _account(self, span: Span) -> Account:
        account = self._accounts.get(span.request)
        if account is None:
            account = self._accounts[span.request] = Account()
            while len(self._accounts) > _MOST_ACCOUNTS:
                self._accounts.popitem(last=False)
        return account


STEP: Final = Step()
"""The pass that this worker runs."""


def _rows(members: Sequence[Span]) -> Rows:
    """A slice where the rows are neighbours, which they mostly are; else int64 [n]."""
    start, stop = members[0].start, members[-1].stop
    if sum(span.count for span in members) == stop - start:
        return slice(start, stop)
    return torch.cat([torch.arange(span.start, span.stop) for span in members])
