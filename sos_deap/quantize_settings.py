"""The settings of a run that state how the weights of its models are quantised."""

from __future__ import annotations

from dataclasses import dataclass

from sos_deap.tasks.settings import setting


@dataclass(frozen=True)
class QuantizeSettings:
    """Quantisation of a run; every field is a flag and a key of a configuration file."""

    quantize: str = setting(
        "none",
        "data",
        "Weights of the linear layers of the model, except its output layer: none (as stored) or "
        "int8 (integers of 8 bits with one scale for each row, by the package torchao).",
    )
    quantize_output: str | None = setting(
        None,
        "output",
        "Weights of the pruned model: int8 (those that the search evaluated, sliced), or none (the "
        "weights as stored, sliced).",
        unset="that of --quantize",
    )

    @property
    def written(self) -> str:
        """The quantisation of the pruned model."""
        return self.quantize if self.quantize_output is None else self.quantize_output
