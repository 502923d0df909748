"""The budget of a run: the maximum sparsity, or a speed-up or size from which it follows."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from sos_deap.errors import InputError
from sos_deap.evaluation.evaluator import Evaluator
from sos_deap.models.costs import sparsity_defaults
from sos_deap.models.quantised import quantisation, weight_bytes

_COUNTS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9, "t": 10**12}
_BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12} | {
    f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)
}

#: The search compares sparsities with this tolerance; see
#: :func:`sos_deap.search.chromosome.within`.
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Budget:
    """How much a run may remove, as given; :func:`budget_of` makes it.

    :param sparsity_of: what sparsity is a share of.
    :param max_sparsity: S, the largest share removed, as far as it is known without the model.
    :param speedup: speed-up from which S follows.
    :param parameters: most parameters of the pruned model, from which S follows.
    :param bytes: most bytes of its weights as stored, from which S follows.
    """

    sparsity_of: str
    max_sparsity: float
    speedup: float | None = None
    parameters: int | None = None
    bytes: int | None = None

    def bound(self, evaluator: Evaluator) -> float:
        """Return S, the largest share removed.

        For a number of parameters or bytes it is the smallest S with which a search that removes
        genes until no further one fits reaches the number.

        :param evaluator: the evaluator of the run.
        :raises InputError: for a speed-up or a size that no sub-model has, and for a size that the
            dense model has.
        """
        if self.speedup is not None:
            self._check_speedup(evaluator)
        if self.parameters is not None:
            return _bound(evaluator, self.parameters, "target_parameters", "parameters")
        if self.bytes is not None:
            return _bound(evaluator, self.bytes, "target_bytes", "bytes of weights")
        return self.max_sparsity

    def _check_speedup(self, evaluator: Evaluator) -> None:
        most = evaluator.sparsity([0] * len(evaluator.gene_map))
        if self.max_sparsity > most:
            assert evaluator.time_table is not None
            largest = math.floor(100 / (1 - most)) / 100
            raise InputError(
                f"speedup is {self.speedup}: with every gene removed the model is {largest:g} "
                f"times as fast ({evaluator.time_table.conditions}); give at most {largest:g}, or "
                "other genes"
            )


def budget_of(
    genes: str,
    sparsity_of: str | None,
    max_sparsity: float | None,
    speedup: float | None = None,
    target_parameters: str | None = None,
    target_bytes: str | None = None,
) -> Budget:
    """Return the budget that flags give.

    :param genes: kinds of genes, on which the defaults depend.
    :param sparsity_of: one of :data:`sos_deap.models.costs.SPARSITIES`.
    :param max_sparsity: S, the largest share removed.
    :param speedup: how many times as fast as the dense model the pruned one may become, above 1.
    :param target_parameters: most parameters of the pruned model, such as ``"200M"``.
    :param target_bytes: most bytes of its weights as stored, such as ``"150MB"`` or ``"100MiB"``.
    :raises InputError: for a value that cannot be read or is out of range, and for flags that
        exclude each other.
    """
    shorthands = {
        "speedup": speedup,
        "target_parameters": target_parameters,
        "target_bytes": target_bytes,
    }
    given = [name for name, value in shorthands.items() if value is not None]
    if not given:
        return Budget(*sparsity_defaults(genes, sparsity_of, max_sparsity))
    of = "time" if given[0] == "speedup" else "parameters"
    if others := given[1:] + ["max_sparsity"] * (max_sparsity is not None):
        raise InputError(
            f"{given[0]} sets the maximum sparsity, and so does {others[0]}: give one of them"
        )
    if sparsity_of not in (None, of):
        raise InputError(
            f"{given[0]} is for the sparsity_of {of}, and sparsity_of is {sparsity_of}: leave one "
            "of them out"
        )
    if speedup is not None:
        if not (speedup > 1 and math.isfinite(speedup)):
            raise InputError(f"speedup is {speedup}: give a number above 1, such as 1.28")
        return Budget(of, 1 - 1 / speedup, speedup)
    usual = sparsity_defaults(genes, of, None)[1]  # for checks before the model is loaded
    if target_parameters is not None:
        count = _number(target_parameters, _COUNTS, "target_parameters", "k, M, G or B", "200M")
        return Budget(of, usual, parameters=count)
    assert target_bytes is not None
    count = _number(target_bytes, _BYTES, "target_bytes", "kB, MB, GB, KiB, MiB or GiB", "150MB")
    return Budget(of, usual, bytes=count)


def _number(text: str, units: dict[str, int], name: str, suffixes: str, example: str) -> int:
    """Return a number with a suffix as a whole number, rounded down."""
    found = re.fullmatch(r"(\d{1,30}|\d{0,30}\.\d{1,30})\s*([A-Za-z]*)", text.strip(), re.ASCII)
    if found is None or found[2].lower() not in units:
        raise InputError(
            f"{name} is {text[:40]!r}: give a number, with {suffixes} or without, such as {example}"
        )
    count = math.floor(Fraction(found[1]) * units[found[2].lower()])
    if count < 1:
        raise InputError(f"{name} is {text[:40]!r}: give at least 1")
    return count


def _bound(evaluator: Evaluator, target: int, name: str, what: str) -> float:
    """Return S for a number of parameters or bytes.

    :param evaluator: the evaluator of the run.
    :param target: the most parameters or bytes of the pruned model.
    :param name: name of the flag.
    :param what: what is counted, for error messages.
    """
    genes, total = len(evaluator.gene_map), evaluator.model.num_parameters()
    each, dense = 1, total
    if name == "target_bytes":
        # A removed parameter is of a matrix, and one of int8 removes a part of a scale, too.
        each = 1 if quantisation(evaluator.model) == "int8" else evaluator.stored_dtype.itemsize
        dense = weight_bytes(evaluator.model, evaluator.stored_dtype)

    def removed(chromosome: list[int]) -> int:
        return round(evaluator.sparsity(chromosome) * total)

    most = removed([0] * genes)
    least = dense - most * each
    if target < least:
        raise InputError(
            f"{name} is {target:,}: with every gene removed the model still has {least:,} {what}; "
            "give at least that, or other genes"
        )
    if target >= dense:
        raise InputError(
            f"{name} is {target:,}: the dense model has {dense:,} {what}, so nothing needs "
            "to be removed; give less"
        )
    # What a gene removes as the last one: a key/value head is removed with its last query head.
    cheapest = min(
        most - removed([int(gene == other) for other in range(genes)]) for gene in range(genes)
    )
    # A search ends when no gene fits any more, so that it has removed more than S less the
    # parameters of one gene.
    needed = -((target - dense) // each)
    return min((needed + cheapest - 0.5) / total - _TOLERANCE, most / total)
