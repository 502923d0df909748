"""The perplexity of a text under the frequencies of its own tokens."""

from __future__ import annotations

import math
from collections import Counter

from torch import Tensor


def unigram_perplexity(ids: Tensor, vocabulary: int) -> float:
    """Return the perplexity of a text under a unigram model of the rest of the text.

    Each token is predicted from the counts of all others (leave-one-out). Tokens that do not occur
    among these share the probability that Good and Turing's estimate reserves for unseen ones, the
    share of tokens that occur once.

    :param ids: token ids.
    :param vocabulary: number of tokens in the vocabulary.
    :returns: the perplexity; that of the uniform distribution if no token occurs twice.
    """
    counts = Counter(ids.flatten().tolist())
    total, once = sum(counts.values()), sum(count == 1 for count in counts.values())
    if once == total:
        return float(vocabulary)
    unseen = once / total
    # A token that occurs once is unseen among the others, as is the rest of the vocabulary.
    nats = -once * math.log(unseen / (vocabulary - len(counts) + 1)) if once else 0.0
    for count in counts.values():
        if count > 1:
            nats -= count * math.log((1 - unseen) * (count - 1) / (total - once - 1))
    return math.exp(nats / total)
