"""Texts of the summariser: articles, WikiText, stories, and datelines with invented names."""

from __future__ import annotations

import csv
import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sos_deap.errors import InputError

ARTICLES = "cnn-dailymail/sample.csv"
WIKI = "wikitext-2/train.txt"
STORIES = ("tinystories/valid.txt", "tinystories/test.txt")
COLUMNS = ("id", "article", "highlights")

# Text before the first sentence of an article: bylines, dates and places.
_PLACE = r"(?:[A-Z][\w .,'-]{2,40}\s+)?\(CNN\)(?:\s*--)?\s*"
_NAMES = r"By \. [^.|]{3,60} \. (?:and [^.|]{3,40} \. )?"
_DATES = r"(?:PUBLISHED|UPDATED): \. [^.|]{5,40} \. |\| \. |Last updated at [^.|]{5,40} \. "
DATELINE = re.compile(f"^(?:{_NAMES}|{_DATES}|{_PLACE})+")
_CLOSING, _OPENING = "[\"'\u201d\u2019)]", "[\"'\u201c\u2018(]"
SENTENCE_END = re.compile(rf"(?:(?<=[.!?])|(?<=[.!?]{_CLOSING}))\s+(?={_OPENING}*[A-Z0-9\u00a3$])")


@dataclass(frozen=True)
class Texts:
    """The training texts.

    :param wiki: detokenized paragraphs of WikiText.
    :param stories: stories on one line each.
    :param news: articles without their datelines.
    :param datelines: random datelines.
    """

    wiki: list[str]
    stories: list[str]
    news: list[str]
    datelines: list[str]


def read_texts(data: Path, articles: list[dict[str, str]], seed: int) -> Texts:
    """Read the training texts.

    :param data: folder with `WIKI` and `STORIES`.
    :param articles: rows of the train articles.
    :param seed: seed of the invented names.
    """
    draw = random.Random(seed)
    wiki = list(wiki_text((data / WIKI).read_text(encoding="utf-8"), draw))
    stories = [
        " ".join(story.split())
        for name in STORIES
        for story in (data / name).read_text(encoding="utf-8").split("\n\n")
    ]
    news = [body(row["article"]) for row in articles]
    return Texts(wiki, stories, news, datelines=[dateline(draw) for _ in range(2000)])


def read_articles(path: Path) -> list[dict[str, str]]:
    """Read the rows of the news sample, without its unnamed column.

    :raises InputError: if a column is missing.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or not set(COLUMNS) <= set(rows[0]):
        raise InputError(f"{path} has not all columns {', '.join(COLUMNS)}: give another --data")
    return [{name: row[name] for name in COLUMNS} for row in rows]


def split(rows: list[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    """Split the articles by a hash of their ids: 30 % train, 30 % validation, 40 % test."""
    rows = sorted(rows, key=lambda row: hashlib.sha256(row["id"].encode()).hexdigest())
    first, second = len(rows) * 3 // 10, len(rows) * 6 // 10
    return {"train": rows[:first], "validation": rows[first:second], "test": rows[second:]}


def invented(draw: random.Random) -> str:
    """Return an invented name of one to three syllables, which can be predicted by copying only."""
    syllables = (draw.choice("bcdfghjklmnprstvwz") + draw.choice("aeiou") for _ in range(3))
    word = "".join(list(syllables)[: draw.randint(1, 3)]) + draw.choice(("", "n", "r", "s", "l"))
    return word.capitalize()


def wiki_text(raw: str, draw: random.Random) -> Iterator[str]:
    """Yield detokenized paragraphs of WikiText, with an invented name for each <unk>."""
    for line in raw.splitlines():
        text = line.strip()
        if len(text) < 100 or text.startswith("="):
            continue
        text = re.sub("<unk>", lambda _: invented(draw), text)
        text = re.sub(r" @(.)@ ", r"\1", text)
        text = re.sub(r" ([,.;:!?)\]%]|'s|n't|'ll|'re|'ve)(?= |$)", r"\1", text)
        text = re.sub(r"([(\[$£]) ", r"\1", text)
        yield re.sub(r'" (.*?) "', r'"\1"', text)


def dateline(draw: random.Random) -> str:
    """Return a dateline in the style of the two newspapers of the sample, with invented names."""
    name, place = (f"{invented(draw)} {invented(draw)}" for _ in range(2))
    if draw.random() < 0.5:
        before = draw.choice(("", "", f"{place}, ", f"{invented(draw).upper()}, "))
        return draw.choice(("(CNN) --", f"{before}{invented(draw)} (CNN) --"))
    moments = [
        f"{draw.randint(1, 23):02d}:{draw.randint(0, 59):02d} EST, {_day(draw)}" for _ in range(2)
    ]
    by = draw.choice((f"By . {name} . ", "By . Daily Mail Reporter . ", f"By . {name} . ", ""))
    if by and draw.random() < 0.1:
        by += f"and {place} . "
    dates = (
        f"PUBLISHED: . {moments[0]} . | . UPDATED: . {moments[1]} .",
        f"UPDATED: . {moments[1]} .",
        f"Last updated at {draw.randint(1, 12)}:{draw.randint(0, 59):02d} "
        f"{draw.choice(('AM', 'PM'))} on {_day(draw)} .",
    )
    return (by + ("" if by and draw.random() < 0.4 else draw.choice(dates))).strip()


def _day(draw: random.Random) -> str:
    months = "January February March April May June July August September October November December"
    ending = draw.choice(("", "th"))
    return f"{draw.randint(1, 30)}{ending} {draw.choice(months.split())} {draw.randint(2008, 2015)}"


def sentences(text: str) -> list[str]:
    """Split running text into sentences."""
    return [part for part in SENTENCE_END.split(" ".join(text.split())) if part]


def body(article: str) -> str:
    """Return an article without its dateline."""
    return DATELINE.sub("", article).strip()
