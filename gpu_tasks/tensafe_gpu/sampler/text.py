"""Between text and tokens: the base model's own tokenizer and chat template.

Continuations are compared with stop strings as text, as the engine does; what is returned ends before the
stop and holds no special tokens.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tensafe.contracts.errors import InvalidRequest, TensafeError, Unsupported
from tensafe.contracts.sampling import SampleRequest, SampleResult
from tensafe.contracts.sampling import Sequence as Drawn
from tensafe.contracts.text import TextChoice, TextPayload, TextResult, TokenText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LOWEST: Final = -9999.0
"""For a logprob of minus infinity, which JSON cannot hold."""
_BROKEN: Final = "\N{REPLACEMENT CHARACTER}"
_BROKEN_TOKENS: Final = 4
"""A character of UTF-8 has at most so many bytes, and a token at least one."""


class Texts:
    """One base model's tokenizer, loaded when it is first needed. Thread-safe."""

    def __init__(self, model_path: str | Path) -> None:
        self._path = str(model_path)
        self._lock = threading.Lock()
        self._loaded: PreTrainedTokenizerBase | None = None

    def request(self, payload: TextPayload) -> SampleRequest:
        """The token ids to continue. Raises InvalidRequest, or Unsupported without tokenizer or template."""
        tokens = self._prompt(payload)
        if not tokens:
            raise InvalidRequest("the prompt has no tokens", field="prompt")
        return SampleRequest(
            prompt=tuple(tokens),
            num_samples=payload.num_samples,
            params=payload.params,
            topk_sample_logprobs=payload.top_logprobs or 0,
        )

    def result(self, payload: TextPayload, request: SampleRequest, result: SampleResult) -> TextResult:
        """The continuations as text."""
        return TextResult(
            choices=tuple(self._choice(payload, drawn) for drawn in result.sequences),
            prompt_tokens=len(request.prompt),
            completion_tokens=sum(len(drawn.tokens) for drawn in result.sequences),
            cached_prompt_tokens=result.prompt_cache_hit_tokens,
        )

    def settled(self, payload: TextPayload, tokens: Sequence[int]) -> str:
        """The beginning of a growing continuation that later tokens cannot change any more.

        Held back: a character that is not whole, and an ending that may become a stop string.
        """
        text = self._decode(tokens)
        tail = text[-_BROKEN_TOKENS:]
        if _BROKEN in tail:
            text = text[: len(text) - len(tail) + tail.index(_BROKEN)]
        stops = _stop_strings(payload)
        cut = _before_stop(text, stops)
        if len(cut) < len(text):
            return cut
        held = max((_overlap(text, stop) for stop in stops), default=0)
        return text[: len(text) - held]

    def _choice(self, payload: TextPayload, drawn: Drawn) -> TextChoice:
        text = _before_stop(self._decode(drawn.tokens.tolist()), _stop_strings(payload))
        tokens = None if payload.top_logprobs is None else self._token_texts(payload.top_logprobs, drawn)
        return TextChoice(text=text, stop_reason=drawn.stop_reason, tokens=tokens)

    def _token_texts(self, top: int, drawn: Drawn) -> tuple[TokenText, ...]:
        rows = []
        for position, (token, logprob) in enumerate(
            zip(drawn.tokens.tolist(), drawn.logprobs.tolist(), strict=True)
        ):
            likeliest: tuple[tuple[str, float], ...] = ()
            if top and drawn.topk is not None:
                pairs = zip(
                    drawn.topk.token_ids[position].tolist(),
                    drawn.topk.logprobs[position].tolist(),
                    strict=True,
                )
                likeliest = tuple((self._alone(other), max(_LOWEST, value)) for other, value in pairs)
            rows.append(TokenText(text=self._alone(token), logprob=max(_LOWEST, logprob), top=likeliest))
        return tuple(rows)

    def _prompt(self, payload: TextPayload) -> Sequence[int]:
        if isinstance(payload.prompt, tuple):
            return payload.prompt
        if payload.prompt is not None:
            return self._encode(payload.prompt, special=True)
        tokenizer = self._tokenizer()
        if not tokenizer.chat_template:
            raise Unsupported(
                "this model has no chat template; use /v1/completions with a prompt of your own making",
                field="messages",
            )
        messages = [message.model_dump() for message in payload.messages or ()]
        try:
            # The template writes the special tokens itself.
            rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # a template refuses with whatever its author chose
            raise InvalidRequest(
                "the model's chat template refuses these messages (most want user and assistant to "
                "alternate, after at most one system message)",
                field="messages",
            ) from error
        return self._encode(str(rendered), special=False)

    def _encode(self, text: str, *, special: bool) -> list[int]:
        ids: list[int] = self._tokenizer()(text, add_special_tokens=special)["input_ids"]
        return ids

    def _decode(self, tokens: Sequence[int]) -> str:
        return self._text(tokens, skip_special_tokens=True)

    def _alone(self, token: int) -> str:
        return self._text([token], skip_special_tokens=False)

    def _text(self, tokens: Sequence[int], **options: Any) -> str:  # noqa: ANN401 - options of the library
        return str(self._tokenizer().decode(list(tokens), clean_up_tokenization_spaces=False, **options))

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        with self._lock:
            if self._loaded is None:
                self._loaded = _load(self._path)
            return self._loaded


def _load(path: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer  # noqa: PLC0415 - a second of imports, for text alone

    try:
        loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
    except TensafeError:
        raise
    except Exception as error:  # the library raises errors of several others
        raise Unsupported(
            "this model's folder has no tokenizer that can be loaded; sample from it by token ids",
            field="model",
        ) from error
    return loaded


def _stop_strings(payload: TextPayload) -> tuple[str, ...]:
    stop = payload.params.stop
    entries = (stop,) if isinstance(stop, str) else stop or ()
    return tuple(entry for entry in entries if isinstance(entry, str))


def _before_stop(text: str, stops: Sequence[str]) -> str:
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(found)] if found else text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest ending of `text` that is a proper beginning of `stop`."""
    for size in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
