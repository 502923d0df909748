"""The number of sub-models in a masked batch, chosen by timing."""

from __future__ import annotations

#: How often each size is timed: its first pass may include work that is done once.
_TRIES = 2


class BatchSizes:
    """Chooses how many sub-models go into a masked batch.

    Powers of two are timed on real passes, in ascending order; then the fastest is used.
    """

    def __init__(self) -> None:
        self._seconds: dict[int, list[float]] = {}  # per sub-model, by size of the batch

    def next(self, most: int) -> int:
        """The size of the next batch: the first not timed often enough, else the fastest.

        :param most: sub-models that are left and fit in a pass.
        """
        powers = [1 << exponent for exponent in range(most.bit_length())]
        for size in powers:
            if len(self._seconds.get(size, ())) < _TRIES:
                return size
        fastest = min(powers, key=lambda size: min(self._seconds[size]))
        # If the largest is the fastest, a few more sub-models save a pass for the rest.
        return most if fastest == powers[-1] else fastest

    def record(self, sub_models: int, seconds: float) -> None:
        """Record the time of a batch of sub-models on all examples."""
        times = self._seconds.setdefault(sub_models, [])
        if len(times) < _TRIES:
            times.append(seconds / sub_models)
