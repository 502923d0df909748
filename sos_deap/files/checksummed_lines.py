"""Lines of JSON with checksums, and the settings that a run writes in such a line."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any


def encoded(content: dict[str, Any]) -> bytes:
    """A line: the CRC-32 of the JSON in hexadecimal, a space, the JSON, and a line break."""
    text = json.dumps(content).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def decoded(line: bytes) -> dict[str, Any] | None:
    """The content of a line; ``None`` if it is incomplete or its checksum is wrong."""
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    try:
        if not line.endswith(b"\n") or int(checksum, 16) != zlib.crc32(text):
            return None
        content: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def read_settings(path: Path) -> dict[str, Any] | None:
    """The settings that a run last wrote into its journal; ``None`` if it wrote none.

    :param path: the journal's file, which may be missing.
    """
    if not path.is_file():
        return None
    contents = map(decoded, path.read_bytes().splitlines(keepends=True))
    found = [content["settings"] for content in contents if content and "settings" in content]
    return found[-1] if found and isinstance(found[-1], dict) else None
