"""Run a model one layer at a time over a whole text, so that a layer can change before the next."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from sos_deap.models.temporary import replaced
from sos_deap.models.text import Text


class _Stop(Exception):  # noqa: N818 - it ends a forward pass and is no error
    """Ends a forward pass after the part that was requested."""


class LayerByLayer:
    """One model's layers, run one after the other; the outputs of the latest layer are kept.

    Each layer runs inside the model's own forward method, in which the layers before it return what
    they computed earlier. So a layer gets the arguments that it always gets, whatever the
    architecture, and all layers together cost one forward pass, without the language-modelling
    head.

    :param model: the model, in evaluation mode.
    :param blocks: paths of all its layers, in the order in which they run.
    :param text: the text.
    """

    def __init__(self, model: Any, blocks: Sequence[str], text: Text) -> None:
        self._model, self._blocks, self._text = model, blocks, text
        stacks = [_stack(path) for path in blocks]
        #: Whether layers of two stacks alternate, such as the attentions and feed-forwards of XLM:
        #: then a layer's output is no whole hidden state, and the latest one does not suffice.
        self._alternate = len(list(itertools.groupby(stacks))) > len(set(stacks))
        #: The output of the latest layer of each stack (such as an encoder), by its path and the
        #: first example of the batch; that of each layer if stacks alternate.
        self._outputs: dict[tuple[str, int], Any] = {}

    def run(self, layer: int, examples: slice) -> tuple[Tensor, Tensor]:
        """Run a layer on some examples, and keep its output for the layers after it.

        :param layer: index of the layer; all layers before it must have run on these examples.
        :param examples: the examples.
        :returns: the hidden states before and after the layer, (rows, hidden size), a row for each
            token.
        """
        path = self._blocks[layer]
        forward = self._model.get_submodule(path).forward

        def last(*args: Any, **kwargs: Any) -> Any:
            self._outputs[self._key(path), examples.start] = forward(*args, **kwargs)
            raise _Stop

        before = self._pass(layer, examples, last)
        return before, _rows(_first(self._outputs[self._key(path), examples.start]))

    def input_of(self, layer: int, module: str, examples: slice) -> tuple[Tensor | None, Tensor]:
        """Run a layer up to one of its modules, and return the module's input.

        :param layer: index of the layer; all layers before it must have run on these examples.
        :param module: path of the module in the model.
        :param examples: the examples.
        :returns: the input, (rows, inputs), a row for each token, ``None`` if the module did not
            run; and the hidden states before the layer, (rows, hidden size).
        """
        found: list[Tensor] = []

        def stop(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            found.append(_rows(given[0]))
            raise _Stop

        hook = self._model.get_submodule(module).register_forward_pre_hook(stop)
        try:
            before = self._pass(layer, examples, None)
        finally:
            hook.remove()
        return found[0] if found else None, before

    def _pass(self, layer: int, examples: slice, last: Callable[..., Any] | None) -> Tensor:
        """Run the model up to a layer, or a part of it; return the states before the layer."""
        before: list[Tensor] = []

        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            before.append(_rows(args[0] if args else kwargs["hidden_states"]))

        with ExitStack() as stack, torch.inference_mode():
            for path in self._blocks[:layer]:
                block = self._model.get_submodule(path)
                kept = self._outputs[self._key(path), examples.start]
                stack.enter_context(replaced(block, forward=_returning(kept)))
            block = self._model.get_submodule(self._blocks[layer])
            stack.callback(block.register_forward_pre_hook(record, with_kwargs=True).remove)
            if last is not None:
                stack.enter_context(replaced(block, forward=last))
            with suppress(_Stop):
                self._text.score(self._model, examples, 1)
        return before[0]

    def _key(self, path: str) -> str:
        return path if self._alternate else _stack(path)


def _rows(states: Tensor) -> Tensor:
    """Return hidden states with one row for each token."""
    return states.flatten(0, -2)


def _first(output: Any) -> Tensor:
    """Return the hidden states of a layer's output, which may be a tuple that begins with them."""
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


def _returning(value: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: value


def _stack(block: str) -> str:
    """Return the path of the stack of layers that a layer belongs to, such as an encoder."""
    return block.rpartition(".")[0]


@contextmanager
def recorded_outputs(model: nn.Module, modules: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Record the output of the latest call of some modules, inside the context.

    :param model: the model.
    :param modules: paths of the modules in the model.
    :returns: by path the output, (rows, outputs), a row for each token.
    """
    seen: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for path in modules:

            def record(module: nn.Module, given: Any, output: Tensor, path: str = path) -> None:
                # Copied, since some layers add to it in place, such as Falcon's.
                seen[path] = _rows(output).clone()

            handle = model.get_submodule(path).register_forward_hook(record)
            stack.callback(handle.remove)
        yield seen
