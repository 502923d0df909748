"""Sphinx directives for flags and help texts, and links between public names."""

from __future__ import annotations

import io
import os
import re
from contextlib import redirect_stdout, suppress
from dataclasses import MISSING, Field, fields
from importlib import import_module
from typing import Any
from unittest.mock import patch

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective

import sos_deap


class Flags(SphinxDirective):
    """``{flags} module Dataclass``: lists a flag per field, with its type, default and help."""

    required_arguments = 2

    def run(self) -> list[nodes.Node]:
        """Return the list of flags."""
        module, name = self.arguments
        entries = nodes.definition_list(classes=["flags"])
        entries += [self._entry(field) for field in fields(getattr(import_module(module), name))]
        return [entries]

    def _entry(self, field: Field[Any]) -> nodes.Node:
        assert field.default is not MISSING, f"{field.name} has no default"
        flag = nodes.literal("", f"--{field.name}")
        kind = str(field.type).removesuffix(" | None")
        about = _with_flags(f" {_KINDS[kind]}, default {field.metadata['default']}")
        term = nodes.term(
            "", "", flag, nodes.inline("", "", *about, classes=["about"]), ids=[field.name]
        )
        help_text = nodes.paragraph("", "", *_with_flags(field.metadata["help"]))
        return nodes.definition_list_item("", term, nodes.definition("", help_text))


def _with_flags(text: str) -> list[nodes.Node]:
    """Return a text with its flags in code type, whose lines do not break at a hyphen."""
    parts = re.split(r"(--\w+)", text)
    return [nodes.literal("", part) if i % 2 else nodes.Text(part) for i, part in enumerate(parts)]


_KINDS = {"str": "text", "int": "integer", "float": "number", "bool": "True or False"}


class Help(SphinxDirective):
    """``{help} module function [ARGUMENT]``: the output of ``function([ARGUMENT, "--help"])``."""

    required_arguments = 2
    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the help text as a literal block."""
        module, function, *rest = self.arguments
        printed = io.StringIO()
        with patch.dict(os.environ, COLUMNS="88"), redirect_stdout(printed), suppress(SystemExit):
            getattr(import_module(module), function)([*rest, "--help"])
        text = printed.getvalue()
        assert text, f"{module}.{function} printed no help"
        return [nodes.literal_block(text, text, language="text")]


def found_elsewhere(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.reference | None:
    """Resolve a docstring's reference to an object that is documented under another name.

    Docstrings use names of their module, such as ``FAMILIES`` or ``sos_deap.errors.InputError``;
    public names are documented as names in ``sos_deap``.
    """
    if node.get("refdomain") != "py":
        return None
    name = str(node["reftarget"])
    if name.startswith("sos_deap."):
        public = [part for part in name.split(".") if part in sos_deap.__all__]
        if not public:
            return None
        name = f"sos_deap.{name[name.index(public[0]) :]}"
    node["refspecific"] = True  # also match the end of a full name
    python, kind = env.domains.python_domain, str(node["reftype"])
    return python.resolve_xref(env, node["refdoc"], app.builder, kind, name, node, content)


def skipped(app: Sphinx, what: str, name: str, thing: Any, skip: bool, options: Any) -> bool:
    """Skip the fields of named tuples, which are documented as parameters."""
    return skip or type(thing).__name__ == "_tuplegetter"


def setup(app: Sphinx) -> dict[str, bool]:
    """Register directives and event handlers; Sphinx calls this function."""
    app.add_directive("flags", Flags)
    app.add_directive("help", Help)
    app.connect("autodoc-skip-member", skipped)
    app.connect("missing-reference", found_elsewhere)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
