"""Safe YAML and JSON: only plain values, bounded in size, without references."""

from __future__ import annotations

from typing import Any

import yaml

from sos_deap.errors import first_line

#: Maximum number of characters of a text, and maximum depth of lists and mappings.
LONGEST, DEEPEST = 100_000, 20


class _Loader(yaml.SafeLoader):
    """Loader without references, since nested references can expand to fill the memory."""

    _level = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Make a value of the next event; raises ``YAMLError`` for references and deep nesting."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("references such as *name are not read")
        if self._level == DEEPEST:
            raise yaml.YAMLError(f"lists and mappings are nested more than {DEEPEST} levels deep")
        self._level += 1
        node = super().compose_node(parent, index)
        self._level -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """Make a mapping; raises ``YAMLError`` for a name that is not a text or is repeated."""
        names = [self.construct_object(name, deep=True) for name, _ in node.value]
        for place, name in enumerate(names):
            if not isinstance(name, str):
                raise yaml.YAMLError(f"the name {name!r} is not a text: write it in quotes")
            if name in names[:place]:
                raise yaml.YAMLError(f"{name!r} is given twice: write it once")
        return super().construct_mapping(node, deep)


def plain(text: str) -> Any:
    """Parse YAML, of which JSON is a part, to plain values.

    :param text: at most :data:`LONGEST` characters, nested at most :data:`DEEPEST` levels deep.
    :raises ValueError: for invalid YAML, references, tags of other types, names that are not texts
        or repeated, and a text that is too long or nested too deep.
    """
    if len(text) > LONGEST:
        raise ValueError(f"{len(text):,} characters are too many: at most {LONGEST:,} are read")
    try:
        return yaml.load(text, _Loader)  # noqa: S506  # a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(first_line(error)) from error
    except Exception as error:  # PyYAML raises many kinds for a value that does not fit its tag
        raise ValueError(f"a value does not fit its tag ({first_line(error)})") from error
