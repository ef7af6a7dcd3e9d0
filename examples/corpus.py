"""The demo's private data: the English conversations of the `chatterbot-corpus` package (BSD-3-Clause).

One conversation is one privacy unit; conversations that say the same thing are kept once. Conversations
that share any turn are all trained on or all held out, so nothing of the held-out part is seen in training.
Units of the training part do share turns (`Corpus.units_that_share`): what one unit's guarantee covers is its
conversation, not a sentence that others say too.
"""

from __future__ import annotations

import hashlib
import importlib.resources
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Final, Protocol

import yaml

HELDOUT_PERCENT: Final = 15
PROGRAM_LISTINGS: Final = "coding"
"""A category whose answers are program listings, not dialogue; left out."""
MAX_TURNS: Final = 12
"""Turns of a conversation that are used; trivia.yml holds one of 88, a list that lost its dashes."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What two people said in turn; `unit_id` names it in the privacy ledger."""

    unit_id: int
    category: str
    turns: tuple[str, ...]

    @property
    def messages(self) -> list[dict[str, str]]:
        """As chat messages: the user begins, the assistant answers."""
        roles = ("user", "assistant")
        return [{"role": roles[n % 2], "content": turn} for n, turn in enumerate(self.turns)]


@dataclass(frozen=True, slots=True)
class Corpus:
    """A fixed split; no turn stands in both parts."""

    train: tuple[Conversation, ...]
    heldout: tuple[Conversation, ...]

    def units_that_share(self) -> int:
        """How many training conversations have a turn that another one has too."""
        said = Counter(turn for conversation in self.train for turn in _said(conversation.turns))
        return sum(any(said[turn] > 1 for turn in _said(one.turns)) for one in self.train)


@dataclass(frozen=True, slots=True)
class Example:
    """One training example: token t predicts `targets[t]`, which counts with `weights[t]` (1 = an answer)."""

    unit_id: int
    tokens: tuple[int, ...]
    targets: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def answer_tokens(self) -> int:
        """How many tokens count."""
        return int(sum(self.weights))


class Tokenizer(Protocol):
    """What is needed of a Hugging Face tokenizer."""

    eos_token_id: int | None
    bos_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids."""


def load_corpus() -> Corpus:
    """Every conversation once, numbered from 1 in the order of the files.

    A hash of its first conversation's text decides for each group that shares turns.
    """
    seen: dict[str, Conversation] = {}
    for category, turns in _conversations():
        seen.setdefault("\n".join(turns).casefold(), Conversation(len(seen) + 1, category, turns))
    train: list[Conversation] = []
    heldout: list[Conversation] = []
    for group in _groups(list(seen.values())):
        text = "\n".join(group[0].turns).casefold()
        bucket = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) % 100
        (heldout if bucket < HELDOUT_PERCENT else train).extend(group)
    by_number = attrgetter("unit_id")
    return Corpus(tuple(sorted(train, key=by_number)), tuple(sorted(heldout, key=by_number)))


def _groups(conversations: list[Conversation]) -> list[list[Conversation]]:
    """Conversations that share a turn, directly or through others, together."""
    group_of: dict[str, list[Conversation]] = {}
    for conversation in conversations:
        said = _said(conversation.turns)
        merged = [conversation]
        for group in {id(group_of[turn]): group_of[turn] for turn in said if turn in group_of}.values():
            merged += group
        merged.sort(key=attrgetter("unit_id"))
        for turn in {turn for one in merged for turn in _said(one.turns)}:
            group_of[turn] = merged
    return list({id(group): group for group in group_of.values()}.values())


def _said(turns: tuple[str, ...]) -> set[str]:
    return {turn.casefold() for turn in turns}


def _conversations() -> Iterator[tuple[str, tuple[str, ...]]]:
    folder = importlib.resources.files("chatterbot_corpus") / "data" / "english"
    for file in sorted(folder.iterdir(), key=lambda entry: entry.name):
        category, _, suffix = file.name.partition(".")
        if suffix != "yml" or category == PROGRAM_LISTINGS:
            continue
        for turns in yaml.safe_load(file.read_text(encoding="utf-8"))["conversations"]:
            clean = tuple(" ".join(turn.split()) for turn in turns[:MAX_TURNS] if isinstance(turn, str))
            # YAML reads a bare number or a colon as something else than text; such conversations have a gap.
            if len(clean) >= 2 and len(clean) == len(turns[:MAX_TURNS]) and all(clean):
                yield category, clean


def encode(tokenizer: Tokenizer, conversation: Conversation, *, max_tokens: int) -> Example:
    """A conversation as `User: ...` / `Assistant: ...` text, cut at `max_tokens`; only the answers count.

    The format needs no special tokens but the end of the sequence, so every base model can learn it.
    """
    tokens = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    weights = [0.0] * len(tokens)
    for n, turn in enumerate(conversation.turns):
        answers = n % 2 == 1
        new = tokenizer.encode(
            f" {turn}" if answers else _question(turn, first=n == 0), add_special_tokens=False
        )
        if answers and tokenizer.eos_token_id is not None:
            new = [*new, tokenizer.eos_token_id]
        tokens += new
        weights += [float(answers)] * len(new)
    tokens, weights = tokens[: max_tokens + 1], weights[: max_tokens + 1]
    return Example(conversation.unit_id, tuple(tokens[:-1]), tuple(tokens[1:]), tuple(weights[1:]))


def encode_prompt(tokenizer: Tokenizer, question: str) -> list[int]:
    """A question as the start of a conversation: what follows is the answer."""
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return [*start, *tokenizer.encode(_question(question, first=True), add_special_tokens=False)]


def _question(turn: str, *, first: bool) -> str:
    return f"{'' if first else chr(10) * 2}User: {turn}\n\nAssistant:"
