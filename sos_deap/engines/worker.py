"""The function that a worker runs: the sums of sub-models."""

from __future__ import annotations

from collections.abc import Sequence

from sos_deap.engines.setup import configure_process, is_configured
from sos_deap.errors import first_line
from sos_deap.evaluation.accounting import ForwardCost
from sos_deap.evaluation.compute import Sums
from sos_deap.evaluation.evaluator import find_local, from_recipe
from sos_deap.models.guard import exclusive


def sums(
    recipe: str, together: int, keys: Sequence[bytes], examples: tuple[int, int]
) -> tuple[Sums, ForwardCost]:
    """The sums of sub-models over some examples, in order, and their cost.

    :param recipe: :attr:`sos_deap.Evaluator.recipe`; the evaluator is made once in each process.
    :param together: workers that share the cores, for a process that was not set up.
    :param keys: the chromosomes of the sub-models, a byte 0 or 1 for each gene.
    :param examples: the first example and the stop.
    :raises InputError: if the model, the task or the data of the recipe differ in this process.
    :raises RuntimeError: in place of an error of a library other than Python's own.
    """
    if together > 1 and not is_configured() and find_local(recipe) is None:
        configure_process(together)
    evaluator = from_recipe(recipe)
    runner = evaluator.runner
    with exclusive(evaluator.model):  # where workers are threads, of the others
        before = runner.cost.copy()
        try:
            rows = [row for _, some in runner.run(keys, slice(*examples)) for row in some]
        except Exception as error:
            if type(error).__module__.partition(".")[0] in ("builtins", "sos_deap"):
                raise
            # A class which cannot be pickled would look like a lost worker.
            raise RuntimeError(f"{type(error).__name__}: {first_line(error)}") from error
        cost = runner.cost.since(before)
        runner.cost.reset(before)  # the caller adds the cost, maybe to this very evaluator
    return rows, cost
