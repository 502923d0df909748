"""Text of the user's as plain values: YAML or JSON, of which nothing is run and nothing grows."""

from __future__ import annotations

from typing import Any

import yaml

from sos_deap.errors import first_line

#: Most characters of a text, and most levels of lists and mappings in each other.
LONGEST, DEEPEST = 100_000, 20


class _Loader(yaml.SafeLoader):
    """Without references: a few of them in each other stand for more than any memory holds."""

    _level = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """As the stock method, which makes a value of the next event."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("references such as *name are not read")
        if self._level == DEEPEST:
            raise yaml.YAMLError(f"lists and mappings are in each other over {DEEPEST} times")
        self._level += 1
        node = super().compose_node(parent, index)
        self._level -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """As the stock method, of which the last of two values with the same name counts."""
        names = [self.construct_object(name, deep=True) for name, _ in node.value]
        for place, name in enumerate(names):
            if not isinstance(name, str):
                raise yaml.YAMLError(f"the name {name!r} is no text: write it in quotes")
            if name in names[:place]:
                raise yaml.YAMLError(f"{name!r} is there twice: write it once")
        return super().construct_mapping(node, deep)


def plain(text: str) -> Any:
    """The value that a text of YAML stands for; JSON is YAML too.

    :raises ValueError: for text that is neither, that asks for more than plain values with names
        that are text, or that is longer or deeper than settings are.
    """
    if len(text) > LONGEST:
        raise ValueError(f"{len(text):,} characters are too many: settings have {LONGEST:,}")
    try:
        return yaml.load(text, _Loader)  # noqa: S506  # a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(first_line(error)) from error
    except Exception as error:  # PyYAML raises many kinds for a value that does not fit its tag
        raise ValueError(f"a value does not fit its tag ({first_line(error)})") from error
