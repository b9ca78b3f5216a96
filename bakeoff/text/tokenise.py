"""From examples to token ids and labels for a causal language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bakeoff.errors import DataError, UsageError
from bakeoff.text.read import Example, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the label that torch's cross entropy and transformers' models leave out of the loss


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One sequence: `input_ids` and `labels`, int64 of shape (tokens,), 2 or more tokens, and where it came from.

    labels[i] is input_ids[i], or -100 where token i is not to be predicted; the model does the shift by one, so that
    the first token of a sequence is never predicted. `documents` numbers the sequences where several are packed into one.
    """

    input_ids: Tensor
    labels: Tensor
    where: str
    documents: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Encoded:
    """All sequences, in the order of the examples, and how many examples lost tokens to the maximum length."""

    items: list[Item]
    truncated: int


def encode(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
    """Turns examples into sequences of at most `max_length` tokens. The tokenizer is not changed.

    text: [bos] text [eos] in windows, one item each, that never cross documents. Each window after the first begins
        with the last token of the one before, labelled -100: every token of the document but its first is predicted
        once, and no window has fewer than 2 tokens. Nothing is truncated.
    completion: [bos] prompt completion [eos], labels on completion and eos. The prompt's tokens are those of the
        prompt alone, as when generating; the completion's are those that follow them in the tokens of both together,
        or, where those do not begin with the prompt's, those of the completion alone.
    messages (also prompt and completion that are messages): the chat template's text, labels on what follows the
        template's generation prompt in each turn of the assistant (of the completion). Where the template renders a
        turn otherwise once others follow it, each turn of the assistant becomes an item of its own, with what comes
        before it.

    Too long a completion or conversation loses the left of what precedes the last answer (never bos), and only if the
    answer alone is too long the end of that answer; each such example counts as truncated.
    bos is added only if the tokenizer itself adds it, eos only if the tokenizer has one.

    Raises DataError for preference examples, for messages without a chat template or that it refuses, and for an
    example of fewer than 2 tokens; UsageError for a `max_length` below 2.
    """
    if max_length < 2:
        raise UsageError(f"max_length is {max_length}; a sequence needs at least 2 tokens for one to be predicted.")
    codec = _Codec(tokenizer)
    items: list[Item] = []
    truncated = 0
    for example in examples:
        if example.kind == "preference":
            raise DataError(f"{example.where}: preference pairs are no text to learn; use a contest on preferences.")
        if example.kind == "text":
            items += _windows(codec, example, max_length)
            continue
        if isinstance(example.prompt, str) and isinstance(example.completion, str) and example.kind == "completion":
            sequences = [_completion(codec, example)]
        else:
            sequences = _conversation(codec, example)
        cut = False
        for sequence in sequences:
            fitted = _fit(sequence, codec.beginning, max_length)
            cut |= len(fitted.ids) < len(sequence.ids)
            items.append(_item(fitted.ids, fitted.labels, example.where))
        truncated += cut
    return Encoded(items, truncated)


class _Codec:
    """The tokenizer without its special tokens, and apart from it what it would put first and last."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        adds_bos = bos is not None and tokenizer("a", verbose=False)["input_ids"][:1] == [bos] != self.ids("a")[:1]
        self.beginning: list[int] = [bos] if adds_bos else []
        self.end: list[int] = [eos] if eos is not None else []

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def continued(self, before: str, before_ids: list[int], after: str) -> list[int]:
        """The tokens of the text `after`, which begins with `before`; they begin with the tokens `before_ids`."""
        together = self.ids(after)
        if together[: len(before_ids)] == before_ids:
            return together
        return before_ids + self.ids(after[len(before) :])


@dataclass(frozen=True)
class _Sequence:
    ids: list[int]
    labels: list[int]
    answer: int  # index of the first token of the last answer


def _item(ids: list[int], labels: list[int], where: str) -> Item:
    if len(ids) < 2:
        raise DataError(f"{where}: the example has fewer than 2 tokens, so nothing can be predicted; remove it.")
    return Item(torch.tensor(ids, dtype=torch.int64), torch.tensor(labels, dtype=torch.int64), where)


def _windows(codec: _Codec, example: Example, max_length: int) -> list[Item]:
    ids = codec.beginning + codec.ids(example.text) + codec.end
    items = [_item(ids[:max_length], ids[:max_length], example.where)]
    for begin in range(max_length - 1, len(ids) - 1, max_length - 1):
        window = ids[begin : begin + max_length]
        items.append(_item(window, [IGNORED, *window[1:]], example.where))
    return items


def _completion(codec: _Codec, example: Example) -> _Sequence:
    assert isinstance(example.prompt, str)
    assert isinstance(example.completion, str)
    prompt = codec.ids(example.prompt)
    both = codec.continued(example.prompt, prompt, example.prompt + example.completion)
    answer = len(codec.beginning) + len(prompt)
    ids = codec.beginning + both + codec.end
    return _Sequence(ids, [IGNORED] * answer + ids[answer:], answer)


def _conversation(codec: _Codec, example: Example) -> list[_Sequence]:
    messages, first = example.messages, 0
    if example.kind == "completion":
        assert isinstance(example.prompt, tuple)
        assert isinstance(example.completion, tuple)
        messages, first = example.prompt + example.completion, len(example.prompt)
    if codec.tokenizer.chat_template is None:
        raise DataError(
            f"{example.where}: the example is a conversation, but the tokenizer has no chat template; take a model "
            "that has one, or give prompt and completion as strings."
        )
    turns = [turn for turn in range(first, len(messages)) if messages[turn].role == "assistant"]
    if not turns:
        raise DataError(f"{example.where}: the completion has no turn of the assistant; give the answer that role.")
    spans = []
    for turn in turns:
        rendered = _render(codec, messages[: turn + 1], False, example.where)
        asked = _render(codec, messages[:turn], True, example.where) if turn else ""
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(asked, rendered, strict=False)))
        spans.append((common, rendered))
    whole = spans[-1][1]
    if all(whole.startswith(rendered) for _, rendered in spans):
        return [_labelled(codec, whole, [(begin, len(rendered)) for begin, rendered in spans], example.where)]
    return [_labelled(codec, rendered, [(begin, len(rendered))], example.where) for begin, rendered in spans]


def _render(codec: _Codec, messages: Sequence[Message], asks: bool, where: str) -> str:
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        return str(codec.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=asks))
    except Exception as error:  # templates are programs: they raise whatever they like
        raise DataError(f"{where}: the tokenizer's chat template refuses the conversation: {error}") from error


def _labelled(codec: _Codec, text: str, spans: list[tuple[int, int]], where: str) -> _Sequence:
    ids: list[int] = []
    labels: list[int] = []
    done, answer = 0, 0
    for begin, end in spans:
        if begin == end:
            raise DataError(f"{where}: the tokenizer's chat template leaves out what the assistant said; take another.")
        begin = max(begin, done)
        for stop, learns in ((begin, False), (end, True)):
            longer = codec.continued(text[:done], ids, text[:stop])
            answer = len(ids)
            labels += longer[len(ids) :] if learns else [IGNORED] * (len(longer) - len(ids))
            ids, done = longer, stop
    return _Sequence(ids, labels, answer)


def _fit(sequence: _Sequence, beginning: list[int], max_length: int) -> _Sequence:
    ids, labels, answer = sequence.ids, sequence.labels, sequence.answer
    if len(ids) <= max_length:
        return sequence
    # At least one token before the answer stays, so that the answer's first token is predicted too.
    head = len(beginning) if answer and ids[: len(beginning)] == beginning else 0
    end = min(len(ids), answer + max_length - max(head, min(answer, 1)))
    begin = max(head, end - (max_length - head))
    return _Sequence(ids[:head] + ids[begin:end], labels[:head] + labels[begin:end], head + answer - begin)
