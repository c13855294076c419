"""Sphinx's settings. Neither the build nor a reader of the site needs a network."""

# ruff: noqa: A001
import emo_torch

project = "Emo optimizers"
author = "The emo-optimizers contributors"
copyright = "the emo-optimizers contributors; the published optimizers are the work of muooon"
release = version = emo_torch.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
]
myst_enable_extensions = ["dollarmath", "fieldlist", "deflist"]
myst_heading_anchors = 4
nb_execution_mode = "off"
# Both packages have objects of the same name: a name in a docstring may mean either.
suppress_warnings = ["ref.python"]

# In docstrings a name in single backticks is code, and a link where the name is public.
default_role = "py:obj"
# Absolute values in docstrings, which would be substitutions of reStructuredText.
rst_epilog = "\n".join(
    rf".. |{name}| replace:: \|{name}\|"
    for name in ("s", "scalar", "g", "k", "m", "p", "u", "w", "x", "h", "s_i", "trust", "drive")
)
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# Copied from the package sphinx-mathjax-offline by `python -m website`.
mathjax_path = "mathjax/tex-chtml.js"

html_theme = "furo"
html_title = f"Emo optimizers {release}"
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1b5e9b", "color-brand-content": "#1b5e9b"},
    "dark_css_variables": {"color-brand-primary": "#7db8ee", "color-brand-content": "#7db8ee"},
}
html_static_path = ["_static"]
html_css_files = ["site.css"]
