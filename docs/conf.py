"""How the documentation is built: `make docs`. A warning is an error."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import letheon

project = "letheon"
author = "The letheon authors"
copyright = "The letheon authors"
release = letheon.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "pages"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "_ext"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_use_unqualified_type_names = True

smartquotes = False  # settings are shown as they are typed

html_theme = "furo"
html_title = "letheon"
html_copy_source = False
html_show_sourcelink = False
