"""How Sphinx builds these pages: `sphinx-build -W -b html docs docs/_build/html`."""

from importlib.metadata import version as _version

project = "ml-dash"
author = "ml-dash contributors"
copyright = "ml-dash contributors, MIT licence"  # noqa: A001, RUF100
version = release = _version("ml-dash")

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nitpicky = True

html_theme = "furo"
html_title = f"ml-dash {release}"
html_show_sphinx = False
html_copy_source = False
pygments_style = "friendly"
pygments_dark_style = "monokai"
