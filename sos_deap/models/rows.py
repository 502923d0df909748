"""Batches whose rows belong to several sub-models, one block of rows after the other."""

from __future__ import annotations

from sos_deap.errors import InputError


def rows_each(rows: int, sub_models: int) -> int:
    """Return the number of a batch's rows that belong to each sub-model.

    :param rows: number of rows.
    :param sub_models: number of sub-models.
    :raises InputError: if the rows cannot be divided equally among them.
    """
    each, rest = divmod(rows, sub_models)
    if rest:
        raise InputError(
            f"the batch has {rows} rows for {sub_models} sub-models: give the same number of rows "
            "for each"
        )
    return each
