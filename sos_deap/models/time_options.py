"""The time table of a model: read from a file, taken from another process, or measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from sos_deap.errors import InputError, unknown
from sos_deap.models.costs import check_sparsity, check_time_options
from sos_deap.models.devices import device_name
from sos_deap.models.genes import GeneMap
from sos_deap.models.identity import fingerprint
from sos_deap.models.length import most_tokens
from sos_deap.models.quantised import dtype_name
from sos_deap.models.site_times import NEW_TOKENS, TOKENS, measured_table
from sos_deap.models.time_table import Conditions, TimeTable, read_time_table, table_of
from sos_deap.models.timing import TIMES_OF, generates


def times_for(
    model: PreTrainedModel,
    genes: GeneMap,
    sparsity_of: str,
    time_table: str | Path | Mapping[str, Any] | None,
    time_tokens: int | None,
    time_of: str | None,
) -> TimeTable | None:
    """Return a model's time table if sparsity is a share of time, otherwise ``None``.

    :param sparsity_of: what sparsity is a share of; the other parameters are those of
        :func:`time_table_of`.
    :raises InputError: for options of time tables with another ``sparsity_of``, if sparsity is
        undefined for the model, and as :func:`time_table_of` does.
    """
    check_time_options(sparsity_of, time_table=time_table, time_tokens=time_tokens, time_of=time_of)
    check_sparsity(model, genes, sparsity_of)
    if sparsity_of != "time":
        return None
    return time_table_of(model, genes, time_table, time_tokens, time_of)


def time_table_of(
    model: PreTrainedModel,
    genes: GeneMap,
    time_table: str | Path | Mapping[str, Any] | None = None,
    time_tokens: int | None = None,
    time_of: str | None = None,
) -> TimeTable:
    """Return a model's time table: from a file, from another process, or measured.

    :param model: the dense model.
    :param genes: its gene map.
    :param time_table: a file, or the value of :meth:`TimeTable.content`, which may have been
        measured on another device; default: measure.
    :param time_tokens: tokens in the prompt; default: those of the table, or :data:`TOKENS`.
    :param time_of: one of :data:`~sos_deap.models.timing.TIMES_OF`; default: that of the table, or
        ``"prefill"``.
    :raises InputError: for a table of other conditions than the model's, and as
        :func:`time_conditions` does.
    """
    if isinstance(time_table, Mapping):
        return table_of(time_table)
    if time_table is None:
        conditions = time_conditions(model, time_of or "prefill", time_tokens)
        return measured_table(model, genes, conditions)
    table = read_time_table(Path(time_table))
    tokens = table.conditions.tokens if time_tokens is None else time_tokens
    asked = replace(table.conditions, of=time_of or table.conditions.of, tokens=tokens)
    table.check(genes, asked, str(time_table))  # before errors about what the model can do
    table.check(
        genes, time_conditions(model, time_of or table.conditions.of, tokens), str(time_table)
    )
    return table


def time_conditions(model: PreTrainedModel, of: str, tokens: int | None) -> Conditions:
    """Return what the times of a model are measured on.

    :param model: the dense model.
    :param of: one of :data:`~sos_deap.models.timing.TIMES_OF`.
    :param tokens: tokens in the prompt; ``None`` for :data:`TOKENS`, or as many as fit.
    :raises InputError: for an unknown kind, decoding with a model that does not generate text, and
        tokens that the model has no positions for.
    """
    if of not in TIMES_OF:
        raise unknown("time_of", of, TIMES_OF)
    if of == "decode" and not generates(model):
        raise InputError(
            f"time_of is decode, and a {model.config.model_type} model of this class does not "
            "generate text: use time_of prefill"
        )
    new = NEW_TOKENS if of == "decode" else 0
    longest = most_tokens(model)
    most = math.inf if longest is None else longest - new
    length = int(min(most, TOKENS)) if tokens is None else tokens
    if not 1 <= length <= most:
        positions = f" of the model's {longest} positions" if longest else ""
        kept = f", {new} of which the decoded tokens take" if longest and new else ""
        raise InputError(
            f"time_tokens is {length}: give at least 1, and at most {most}{positions}{kept}"
        )
    device = device_name(model.device)
    return Conditions(fingerprint(model), device, dtype_name(model), of, length)
