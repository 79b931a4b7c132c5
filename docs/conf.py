"""Settings of the documentation: ``make docs``, or ``python -m sphinx -W docs build/site`` from the checkout's root."""

from vmamba import __version__

project = "VMamba"
author = "the VMamba authors and contributors"
release = version = __version__

extensions = ["sphinx.ext.autodoc", "myst_parser", "docs.generate.extension"]
exclude_patterns = ["generate"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"VMamba {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
pygments_style = "default"
pygments_dark_style = "monokai"
