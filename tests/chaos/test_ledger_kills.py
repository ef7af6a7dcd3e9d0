"""A trainer is killed with SIGKILL at each stage of what its ledger does: in DynamoDB, and in SQLite.

Bounded runs are killed at every call over SQLite elsewhere (test_kills.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tensafe.privacy.deal_record import DealRecord
from tests.chaos.conftest import DealtRun
from tests.chaos.dealt_script import STEPS, DealtOutcome, dealt_outcome
from tests.chaos.forking import Server
from tests.chaos.places import Place, Places, places
from tests.chaos.script import Outcome, look_again, outcome, unnamed_blobs
from tests.support.killing_ports import GIVING_UP, STAGES

STEP = 5
"""Which of the eight private steps of the script's runs is the trainer's last."""
OPENING = ("reserving", "reserved", "anchored")
DEAL = 2
"""Which of the deals is the process' last."""
DEALT = (
    *(("create", f"{stage}:1") for stage in OPENING),
    *(("dealt", f"{stage}:{DEAL}") for stage in STAGES),
    *(("dealt", f"{stage}:1") for stage in GIVING_UP),
)
"""Who dies, and at which of its stages: the trainer that opens the run, or owner and trainer of its deals."""


@pytest.fixture(scope="module", params=["dynamodb", "sqlite"])
def adapter(request: pytest.FixtureRequest) -> str:
    """Where the items are."""
    return str(request.param)


@pytest.fixture(scope="module")
def new_place(adapter: str, space: Path, server: Server) -> Iterator[Places]:
    with places(adapter, space, server) as made:
        yield made


def train(place: Place, stage: str | None = None) -> Outcome:
    """A trainer that ends at a stage, if any, and then one that lives."""
    if stage is not None:
        place.die("train", stage)
    look_again(place.services)
    place.live("train")
    assert unnamed_blobs(place.services, place.folder) == 0, stage
    return outcome(place.services)


@pytest.fixture(scope="module")
def unharmed(new_place: Places, submitted: Path) -> Outcome:
    with new_place(submitted) as place:
        return train(place)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("adapter", ["dynamodb"], indirect=True, scope="module")
@pytest.mark.parametrize("stage", STAGES)
def test_state_01_a_trainer_killed_at_a_stage_of_a_private_step_charges_it_once_and_draws_the_same_noise(
    new_place: Places, submitted: Path, unharmed: Outcome, stage: str
) -> None:
    """The same weights, results and epsilon as without the kill."""
    with new_place(submitted) as place:
        assert train(place, f"{stage}:{STEP}") == unharmed


@pytest.fixture(scope="module")
def undisturbed(new_place: Places, dealt_run: DealtRun) -> DealtOutcome:
    with new_place(dealt_run.created) as place:
        place.live("dealt")
        return dealt_outcome(place.services)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("who", "stage"), DEALT)
def test_a_dealt_run_killed_at_a_stage_of_its_opening_or_of_a_deal_is_charged_once_and_dealt_the_same(
    new_place: Places, dealt_run: DealtRun, undisturbed: DealtOutcome, who: str, stage: str
) -> None:
    """The same deals, weights, results and rows as without the kill; what was given up is so once."""
    assert undisturbed.deals == DealRecord(10, dealt=STEPS + 1, abandoned=1, last="abandoned")
    assert undisturbed.rows == 1 + STEPS + 1
    with new_place(dealt_run.begun if who == "create" else dealt_run.created) as place:
        place.die(who, stage)
        if who == "create":
            place.live("create")
        place.live("dealt")
        assert dealt_outcome(place.services) == undisturbed
