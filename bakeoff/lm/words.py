"""A tokenizer whose tokens are the words of a synthetic task."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def word_tokenizer(words: Sequence[str], joiner: str, end: str) -> PreTrainedTokenizerFast:
    """One token a word, the id its place; the first one is padding, `end` ends texts. `joiner`: what stands between words.

    A text with anything else in it loses that.
    """
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    if joiner:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(joiner, "removed")
    else:
        longest = sorted(words, key=len, reverse=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(map(re.escape, longest))), "isolated")
        tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token=words[0], eos_token=end, clean_up_tokenization_spaces=False
    )
