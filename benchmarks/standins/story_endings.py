"""Cut stories into beginnings and what follows, for summarization by a model of stories.

    python benchmarks/standins/story_endings.py --data DIR --output_dir DIR

`--data` is a folder with tinystories/valid.txt and test.txt. Each row of validation.csv and
test.csv has the first 40 words of a story as `text` and the next 40 as `summary`. A model of
stories that is too small to summarise continues them with the prompt `{text}`, so that the metrics
of generated text can be measured on it.
"""

from __future__ import annotations

import sys
from argparse import Namespace, RawDescriptionHelpFormatter
from pathlib import Path

# A script that is run by its path imports from its own folder only.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sos_deap.cli import Parser, run_with_exit_status
from sos_deap.errors import InputError
from sos_deap.files.atomic import free_folder, whole_folder, write_csv

_WORDS = 40
_PARTS = {"validation": "valid.txt", "test": "test.txt"}


def rows(text: str) -> list[list[str]]:
    """Return beginning and continuation of each story that is long enough.

    :param text: stories with a blank line between them.
    """
    stories = [story.split() for story in text.split("\n\n")]
    return [
        [" ".join(words[:_WORDS]), " ".join(words[_WORDS : 2 * _WORDS])]
        for words in stories
        if len(words) >= 2 * _WORDS
    ]


def write(flags: Namespace) -> None:
    """Read the stories and write the two files."""
    folder = flags.data / "tinystories"
    for name in _PARTS.values():
        if not (folder / name).is_file():
            raise InputError(f"data folder {folder} has no {name}: give another --data")
    free_folder(flags.output_dir)
    with whole_folder(flags.output_dir) as made:
        for part, name in _PARTS.items():
            found = rows((folder / name).read_text(encoding="utf-8"))
            write_csv(made / f"{part}.csv", ["text", "summary"], found)
            print(f"{part}: {len(found):,} stories")


def main(arguments: list[str] | None = None) -> int:
    """Parse the flags, write the files, and return the exit status."""
    parser = Parser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the text files")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the files")
    return run_with_exit_status(lambda: write(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
