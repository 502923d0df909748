"""The settings of a run that state what may be removed, and how much."""

from __future__ import annotations

from dataclasses import dataclass

from sos_deap.tasks.settings import setting


@dataclass(frozen=True)
class BudgetSettings:
    """Genes and budget of a run; every field is a flag and a key of a configuration file."""

    genes: str = setting(
        "heads",
        "genes",
        "What a gene removes: heads (a query head), groups (a key/value head and its query heads), "
        "channels (a block of a layer's feed-forward channels), experts (one of a mixture), "
        "attention or ffn (a whole sub-layer), layers (both sub-layers); joined by +, as in "
        "heads+channels.",
        common=True,
    )
    channel_blocks: int = setting(
        16, "genes", "channels: blocks of each layer's channels, which are in order of importance."
    )
    sparsity_of: str | None = setting(
        None,
        "genes",
        "What sparsity is a share of: genes, parameters of the whole model (which is also the "
        "share of its bytes), operations of a forward pass, or time, which is measured.",
        unset="genes for heads or groups alone, else parameters",
        common=True,
    )
    max_sparsity: float | None = setting(
        None,
        "genes",
        "Largest share removed, S.",
        unset="0.31 of genes; 0.27 of parameters or operations, 0.095 with heads or groups alone; "
        "0.21875 of the time",
        common=True,
    )
    speedup: float | None = setting(
        None,
        "genes",
        "How many times as fast as the dense model the pruned one may become: sparsity_of time, "
        "with the maximum sparsity 1 - 1 / SPEEDUP.",
        unset="given by --max_sparsity",
    )
    target_parameters: str | None = setting(
        None,
        "genes",
        "Most parameters of the pruned model, such as 200M: sparsity_of parameters, with the "
        "maximum sparsity at which searches at constant sparsity reach it.",
        unset="given by --max_sparsity",
    )
    target_bytes: str | None = setting(
        None,
        "genes",
        "The same for the bytes of its weights as stored, such as 150MB or 100MiB.",
        unset="given by --max_sparsity",
    )
    time_table: str | None = setting(
        None,
        "genes",
        "sparsity_of time: the time_table.json of a run with the same model, device and dtype.",
        unset="the times are measured before the search",
    )
    time_of: str | None = setting(
        None,
        "genes",
        "sparsity_of time: what is timed, prefill (a forward pass on a prompt) or decode (a step "
        "of the generation).",
        unset="that of the time table, or prefill",
    )
    time_tokens: int | None = setting(
        None,
        "genes",
        "sparsity_of time: tokens in the prompt.",
        unset="those of the time table, or 128",
    )
