"""Sphinx configuration of the documentation; `make docs` builds it, with warnings as errors."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # for directives.py and for the package

import sos_deap  # noqa: E402

project = "sos_deap"
author = "the sos_deap authors"
version = release = sos_deap.__version__

extensions = ["sphinx.ext.autodoc", "myst_parser", "directives"]
exclude_patterns = ["_build"]

smartquotes = False  # it turns the -- of a flag into a dash
myst_heading_anchors = 4  # heading levels with anchors, for links between pages
nitpicky = True  # an unresolved reference is a warning, and warnings are errors
# Types of other packages, whose documentation is not linked, and private types.
nitpick_ignore_regex = [("py:class", ".*"), ("py:exc", ".*")]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = "sos_deap"
html_static_path = ["static"]
html_css_files = ["pages.css"]
html_show_copyright = False
html_show_sourcelink = False
html_copy_source = False
