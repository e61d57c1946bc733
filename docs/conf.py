"""Sphinx, MyST and Furo. Built by `nox -s check`, where a warning is an error."""

import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))  # for `drawn` and `first_words`

project = "sqlalchemy-envelope"
copyright = "the sqlalchemy_envelope authors"
version = release = version_of("sqlalchemy-envelope")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "drawn",
    "first_words",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"{project} {version}"
html_static_path = ["_static"]
html_css_files = ["drawn.css"]
copybutton_prompt_text = "$ "

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
default_role = "literal"  # one backtick, in docstrings
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_custom_sections = [("Class keywords", "params_style"), ("Class attributes", "params_style")]

# Names of other projects: their inventories would be fetched over the network at every build.
nitpick_ignore_regex = [
    ("py:.*", r"(sqlalchemy|alembic)\..*"),
    # Imported for type checkers alone, and so known to Sphinx by their bare names.
    (
        "py:class",
        r"(Any|AnySession|AnyAsyncSession|AsyncEngine|AsyncPepperRotation|AsyncRotating|AsyncSettling|AsyncUnlocking|Callable.*|Change|Engine|Executor|Follow|MetaData|MigratingColumn|PepperRotation|PrimaryKey|Rotating|Scope|Session|Settling|T|Table|TokenIndex|TokenSet|TokenizedColumn|UUID|dt\.datetime)",
    ),
    ("py:class", r"sqlalchemy_envelope\.orm\.verbs\..*\.(PepperRotation|Settling)"),
    ("py:class", r"(optional|scoped_session|str.*)"),
    # Alembic adds them to the docstrings of its operations.
    ("py:.*", r"(Column|ColumnElement|Operations.*|TypeEngine)"),
    ("py:.*", r"(collections|contextlib|datetime|decimal|dt|enum|os|typing|typing_extensions|uuid)\..*"),
]
