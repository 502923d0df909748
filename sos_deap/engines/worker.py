"""The side of a worker: it makes a model of its own from a recipe, once, and computes sums."""

from __future__ import annotations

import json
import os
import platform
import signal
import threading
from collections.abc import Sequence
from multiprocessing import parent_process
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from sos_deap.errors import InputError, first_line

if TYPE_CHECKING:
    from sos_deap.evaluation.evaluator import Evaluator
    from sos_deap.evaluation.forward import Counts, Sums

_made: dict[str, Evaluator] = {}  # the last one
_settled: list[bool] = []
_lent: WeakValueDictionary[str, Evaluator] = WeakValueDictionary()


def register_local(recipe: str, evaluator: Evaluator) -> None:
    """Let what runs in this process use an evaluator that is there: no second model."""
    _lent[recipe] = evaluator


def evaluator_of(recipe: str, together: int = 1) -> Evaluator:
    """The evaluator of a recipe in this process, made where there is none.

    :param recipe: JSON of the keyword arguments of ``Evaluator.from_pretrained``, and the ``scope``
        that it must have.
    :param together: workers that share the cores, for a process that nobody has set up.
    :raises InputError: if its model, task or data are others here.
    """
    here = _lent.get(recipe) or _made.get(recipe)
    if here is not None:
        return here
    from sos_deap.evaluation.evaluator import Evaluator

    if together > 1 and not is_configured():
        configure_process(together)
    _made.clear()  # before the next one takes memory
    content: dict[str, Any] = json.loads(recipe)
    scope = content.pop("scope")
    made = Evaluator.from_pretrained(**content)
    if made.scope != scope:
        raise InputError(
            f"a worker on {platform.node()} has another model or other data than this process, or "
            "another metric: make them the same, with the same versions, on all hosts"
        )
    _made[recipe] = made
    return made


def sums(
    recipe: str, together: int, keys: Sequence[bytes], examples: tuple[int, int]
) -> tuple[Sums, Counts]:
    """The sums of sub-models over some examples, in order, and what they have cost.

    :param recipe: of the evaluator; see :func:`evaluator_of`.
    :param together: as there.
    :param keys: the sub-models.
    :param examples: from a start to a stop.
    :raises RuntimeError: in place of an error of another library than Python's own.
    """
    from sos_deap.models.guard import exclusive

    evaluator = evaluator_of(recipe, together)
    passes = evaluator.passes
    with exclusive(evaluator.model):  # of other threads, where the workers are threads
        before = passes.counts
        try:
            rows = [row for _, some in passes.run(keys, slice(*examples)) for row in some]
        except Exception as error:
            if type(error).__module__.partition(".")[0] in ("builtins", "sos_deap"):
                raise
            # Of a class that may not travel, in which case the worker would seem to be lost.
            raise RuntimeError(f"{type(error).__name__}: {first_line(error)}") from error
        cost = passes.counts.less(before)
        passes.counts = before  # the one who asked counts it, who may be in this process
    return rows, cost


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA names them."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible:
        return visible.split(",")
    return [str(number) for number in range(torch.cuda.device_count())]


def begin(number: int, together: int) -> None:
    """Set up a worker: a GPU of its own if there is one, and its share of the cores.

    :param number: of the worker on its host, from 0.
    :param together: workers on the host.
    """
    devices = gpus()  # counts them without touching one
    if devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
    configure_process(together)


def is_configured() -> bool:
    """Whether this process has been set up."""
    return bool(_settled)


def configure_process(together: int) -> None:
    """Let torch have this process's share of the cores, and libraries be quiet."""
    import torch

    from sos_deap.cli import quiet

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // together))
    quiet()
    _settled.append(True)


def ignore_sigint() -> None:
    """Leave Ctrl-C to the parent, which lets a batch be finished; end with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):  # the parent has blocked it until now
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """What is killed cannot tell its workers, and they would wait for work for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
