"""Untrained DistilBERT and RoBERTa classifiers, small enough to train on a CPU."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

Problem = Literal["single_label_classification", "multi_label_classification"]

HEADS = 12
WIDTH = 96  # 8 per head
#: The layers have no dropout: it took a quarter of the time on a CPU. Masking tokens
#: (`Stage.hidden`) reduces overfitting at no cost.
NO_DROPOUT = 0.0


def initialize_as_identity(model: nn.Module) -> None:
    """Zero the last matrix of each attention and feed-forward block: layers start as identity.

    With the default initialization, 12 post-norm layers learned only the most frequent label.
    """
    for name, parameter in model.named_parameters():
        if name.endswith(("output.dense.weight", "out_lin.weight", "lin2.weight")):
            nn.init.zeros_(parameter)


def distilbert(
    tokenizer: Any, length: int, labels: dict[int, str]
) -> DistilBertForSequenceClassification:
    """Return an untrained DistilBERT with 6 layers x 12 heads."""
    config = DistilBertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=length,
        n_layers=6,
        n_heads=HEADS,
        dim=WIDTH,
        hidden_dim=2 * WIDTH,
        dropout=NO_DROPOUT,
        attention_dropout=NO_DROPOUT,
        pad_token_id=tokenizer.pad_token_id,
        id2label=labels,
        label2id={name: number for number, name in labels.items()},
        problem_type="single_label_classification",
    )
    model = DistilBertForSequenceClassification(config)
    initialize_as_identity(model)
    return model


def roberta(
    tokenizer: Any, length: int, labels: dict[int, str], problem: Problem
) -> RobertaForSequenceClassification:
    """Return an untrained RoBERTa with 12 layers x 12 heads."""
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=length + tokenizer.pad_token_id + 1,  # starts after the pad id
        type_vocab_size=1,
        num_hidden_layers=12,
        num_attention_heads=HEADS,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        hidden_dropout_prob=NO_DROPOUT,
        attention_probs_dropout_prob=NO_DROPOUT,
        classifier_dropout=0.1,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
        id2label=labels,
        label2id={name: number for number, name in labels.items()},
        problem_type=problem,
    )
    model = RobertaForSequenceClassification(config)
    initialize_as_identity(model)
    return model
