"""Text of the user's as plain values: YAML or JSON, of which nothing is run and nothing grows."""

from __future__ import annotations

from typing import Any

import yaml

from sos_deap.errors import first_line


class _Loader(yaml.SafeLoader):
    """Without references: a few of them in each other stand for more than any memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """As the stock method, which makes a value of the next event."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("references such as *name are not read")
        return super().compose_node(parent, index)


def plain(text: str) -> Any:
    """The value that a text of YAML stands for; JSON is YAML too.

    :raises ValueError: for text that is none, or that asks for more than plain values.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506  # a SafeLoader
    except Exception as error:  # of a tag and a value that do not fit it raises many kinds
        raise ValueError(first_line(error)) from error
