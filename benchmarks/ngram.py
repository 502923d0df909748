"""An interpolated Kneser-Ney 3-gram model over token ids, a baseline for language models.

Discounts are estimated from the counts (n1 / (n1 + 2 n2); Ney, Essen and Kneser 1994; Chen and
Goodman 1999, section 4.1.6, with one discount per order). It has no hyperparameters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int64]
Probabilities = NDArray[np.float64]


class Table:
    """A vectorised lookup table from integer keys to numbers; 0 for unknown keys."""

    def __init__(self, keys: Tokens, values: Tokens | None = None) -> None:
        if values is None:
            self.keys, self.values = np.unique(keys, return_counts=True)
        else:
            self.keys, inverse = np.unique(keys, return_inverse=True)
            self.values = np.bincount(inverse, weights=values).astype(np.int64)

    def __call__(self, keys: Tokens) -> Probabilities:
        """Return the numbers of these keys."""
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, self.values[at], 0).astype(np.float64)

    @property
    def discount(self) -> float:
        """n1 / (n1 + 2 n2), with the numbers n1 and n2 of values 1 and 2; 0.5 if n1 is 0."""
        n1, n2 = (self.values == 1).sum(), (self.values == 2).sum()
        return float(n1 / (n1 + 2 * n2)) if n1 else 0.5


class KneserNey:
    """A 3-gram model, estimated from a stream of token ids below ``vocabulary``."""

    def __init__(self, stream: Tokens, vocabulary: int) -> None:
        self.v = v = vocabulary
        trigrams = (stream[:-2] * v + stream[1:-1]) * v + stream[2:]
        self.tri = Table(trigrams)
        seen = self.tri.keys
        self.tri_context = Table(seen // v, self.tri.values)  # c(ab.)
        self.tri_types = Table(seen // v)  # N1+(ab.)
        self.bi = Table(seen % (v * v))  # N1+(.bc), the continuation counts
        pairs = self.bi.keys
        self.bi_context = Table(pairs // v, self.bi.values)  # N1+(.b.)
        self.bi_types = Table(pairs // v)  # N1+(b.) over continuations
        self.uni = Table(pairs % v)  # N1+(.c)

    def probability(self, a: Any, b: Any, c: Any) -> Probabilities:
        """Return P(c | a, b) for arrays of token ids."""
        v = self.v
        total, d = self.uni.values.sum(), self.uni.discount
        p = np.maximum(self.uni(c) - d, 0) / total + d * len(self.uni.keys) / total / v
        p = self._step(self.bi, self.bi_context, self.bi_types, b * v + c, b, p)
        return self._step(
            self.tri, self.tri_context, self.tri_types, (a * v + b) * v + c, a * v + b, p
        )

    @staticmethod
    def _step(
        counts: Table, contexts: Table, types: Table, key: Any, context: Any, lower: Any
    ) -> Probabilities:
        """Interpolate with the lower order; an unseen context gives the lower order."""
        total, d = contexts(context), counts.discount
        known = np.maximum(total, 1)
        here: Probabilities = (
            np.maximum(counts(key) - d, 0) / known + d * types(context) / known * lower
        )
        either: Probabilities = np.where(total > 0, here, lower)
        return either
