"""A cache of the hidden states that sub-models share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor

Kept = dict[int, tuple[int, ...]]  # from the index of a site to the units that it keeps


class States:
    """A cache of hidden states by prefix, limited in bytes; the least recently used are evicted.

    :param most_bytes: the limit.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0
        #: Called for each layer that is computed: its index, the units that its sites keep, whether
        #: its attention was computed as well, and the rows.
        self.on_layer: Callable[[int, Kept, bool, int], None] | None = None
        self._states = OrderedDict[Hashable, Tensor]()
        # What blocks return after the hidden state; None if they return the hidden state alone.
        self._rest: tuple[Any, ...] | None = None

    def unpack(self, output: Any) -> Tensor:
        """Return the hidden state from the output of a block."""
        self._rest = output[1:] if isinstance(output, tuple) else None
        state: Tensor = output if self._rest is None else output[0]
        return state

    def pack(self, state: Tensor) -> Any:
        """Return a hidden state in the form of a block's output."""
        return state if self._rest is None else (state, *self._rest)

    def get(self, key: Hashable) -> Tensor | None:
        """Return the hidden state of a key; ``None`` if it is not cached."""
        state = self._states.get(key)
        if state is not None:
            self._states.move_to_end(key)
        return state

    def put(self, key: Hashable, state: Tensor) -> None:
        """Cache a hidden state, if it is not larger than the limit."""
        if key in self._states or state.nbytes > self.most_bytes:
            return
        self._states[key] = state
        self.bytes += state.nbytes
        while self.bytes > self.most_bytes:
            _, evicted = self._states.popitem(last=False)
            self.bytes -= evicted.nbytes

    def clear(self) -> None:
        """Remove all hidden states."""
        self._states.clear()
        self.bytes = 0
