"""The task ``summarization``, from a model and texts with reference summaries."""

from __future__ import annotations

from sos_deap.models.loading import Pretrained, load_encoder
from sos_deap.tasks.data.columns import SOURCES, SUMMARIES, one, strings
from sos_deap.tasks.data.draw import Draw, TaskMaker
from sos_deap.tasks.data.encoded import encode
from sos_deap.tasks.data.reading import Part
from sos_deap.tasks.data.sequences import longest
from sos_deap.tasks.generation import Summarization
from sos_deap.tasks.settings import TaskSettings
from sos_deap.tasks.summary_divergence import DivergenceAndTexts, SummaryDivergence
from sos_deap.tasks.task import Task, checked_metric
from sos_deap.tasks.texts import TextMetrics, fit_prompt


def make_summarization(loaded: Pretrained, settings: TaskSettings) -> TaskMaker:
    """Return what makes the task ``summarization``, on texts and their summaries."""
    model, tokenizer = loaded.model, loaded.tokenizer
    encoder = load_encoder(settings.bertscore_model) if settings.bertscore_model else None
    text_metrics = TextMetrics(encoder)
    metric = checked_metric(settings.metric, (*text_metrics.names, SummaryDivergence.name))
    diverges = metric == SummaryDivergence.name
    causal = not model.config.is_encoder_decoder  # prompt and summary are one sequence
    prompt = settings.prompt or ("{text}\nTL;DR:" if causal else "{text}")
    most = longest(loaded, settings.seqlen) - (settings.max_new_tokens if causal else 0)

    def texts(part: Part) -> list[str]:
        return strings(part, one(part, settings.text_column, SOURCES, "text"))

    def task(draw: Draw) -> Task:
        part = draw.part
        assert part is not None
        articles = texts(part)
        summaries = strings(part, one(part, settings.summary_column, SUMMARIES, "summary"))
        rows = draw.rows(texts)
        prompts = [(fit_prompt(articles[i], tokenizer, prompt, most),) for i in rows]
        found = Summarization(
            encode(part.split, prompts, tokenizer, most, model.config.pad_token_id, left=causal),
            [summaries[i] for i in rows],
            tokenizer,
            text_metrics,
            model.device,
            settings.max_new_tokens,
            settings.num_beams,
            None if diverges else metric,
        )
        if not diverges and draw.purpose != "refit":
            return found
        divergence = SummaryDivergence(found, model, settings.top_k)
        # The search and the refit need no texts.
        read = draw.purpose in ("calibration", "refit")
        return divergence if read else DivergenceAndTexts(divergence)

    return task
