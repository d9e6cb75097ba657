"""Settings of Sphinx. ``pip install -e ".[docs]" && sphinx-build -W docs site`` builds the documentation."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

import ase_segnn  # noqa: E402

project, author, copyright = "ase-segnn", "ase-segnn developers", "ase-segnn developers"  # noqa: A001
release = version = ase_segnn.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "docstrings",
    "pages",
]
exclude_patterns = ["_ext", "_templates", "tutorials", "gallery/**/*.ipynb", "gallery/**/*.py"]
templates_path = ["_templates"]
nitpicky = False

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 4

napoleon_custom_sections = ["Result"]
autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
default_role = "code"  # `name` in a docstring

sphinx_gallery_conf = {
    "examples_dirs": "tutorials",
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py$",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_signature": False,
    "capture_repr": (),
    "parallel": 2,
    "min_reported_time": 1,
    "copyfile_regex": r"never",
    "within_subsection_order": "FileNameSortKey",
}

html_theme = "furo"
html_title = "ase-segnn"
html_static_path = []
html_show_sphinx = False
copybutton_prompt_text = ">>> "
