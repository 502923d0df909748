"""The refit of a run's winner, with its quality before and after on text it was not fitted to."""

from __future__ import annotations

import copy
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from transformers import PreTrainedModel

from sos_deap.evaluation.evaluator import Evaluator
from sos_deap.models.refit import SiteFit, check_refit, refit
from sos_deap.quality import quality
from sos_deap.refit_settings import RefitSettings
from sos_deap.tasks.task import Task


@dataclass
class Refit:
    """Refits the winner of a search, in place; called with the pruned model.

    :param evaluator: the evaluator of the search, with held-out data.
    :param how: a name in :data:`sos_deap.refit_settings.REFITS`, not ``"none"``.
    :param damping: the damping; ``None`` to choose it.
    :raises InputError: if the model cannot be refitted on the task's examples.
    """

    evaluator: Evaluator
    how: str
    damping: float | None
    #: The part ``refit`` of ``result.json``, after the call.
    result: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what can be checked before the search."""
        check_refit(self.evaluator.model, self._text, self._fitted, self.damping)

    @property
    def _fitted(self) -> str:
        """What is fitted at the end; during the search the evaluator refits each sub-model."""
        return "bias" if self.how == "bias" else "after"

    @property
    def _text(self) -> Task:
        return self.evaluator.refit_task or self.evaluator.task

    def __call__(self, pruned: PreTrainedModel) -> None:
        """Measure a pruned model's quality, and refit it."""
        model: Any = self.evaluator.model
        same: Any = copy.deepcopy(pruned)
        parts = ("heldout", "probe")
        without = quality(self.evaluator, same.to(model.device, model.dtype), parts).metrics
        del same
        started = time.perf_counter()
        fits = self.repair(pruned)
        self.result.update(
            how=self.how,
            damping=self.damping,
            tokens=max((fit.tokens for fit in fits), default=0),
            inputs=max((fit.inputs for fit in fits), default=0),
            seconds=time.perf_counter() - started,
            greater_is_better=self.evaluator.task.greater_is_better,
            without=without,
            sites=[asdict(fit) for fit in fits],
        )

    def repair(self, pruned: PreTrainedModel) -> list[SiteFit]:
        """Refit a pruned model in place, without measuring it; returns the fits."""
        model, moved = self.evaluator.model, pruned
        moved.to(model.device)  # type: ignore[arg-type]
        return refit(model, pruned, self._text, self._fitted, self.damping)


def refit_of(evaluator: Evaluator, config: RefitSettings) -> Refit | None:
    """Return the refit of a run; ``None`` if it has none.

    :param evaluator: the evaluator of the search.
    :param config: settings of the run.
    :raises InputError: if the model cannot be refitted on the task's examples.
    """
    if config.refit == "none":
        return None
    return Refit(evaluator, config.refit, config.refit_damping)
