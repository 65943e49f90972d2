"""How the site is built: `make docs`, which takes every warning for an error."""

import os
import sys
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")
DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS / "_extensions"), str(DOCS.parent)]

import sklearn_g2d  # noqa: E402
from benchmarks import comparison  # noqa: E402

# The page is in the repository too; built anew, it cannot fall behind its CSV files.
comparison.write(DOCS / "results")

project = "sklearn_g2d"
author = copyright = "The sklearn_g2d developers"
version = release = sklearn_g2d.__version__

extensions = [
    "gallery",
    "mathml",
    "myst_parser",
    "numpydoc",
    "search_words",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "summaries",
]
exclude_patterns = ["_build", "_templates", "images", "checks"]
templates_path = ["_templates"]
default_role = "literal"  # `predict` in a docstring is code
# References to other projects' classes stay plain text: inventories would take a network.
suppress_warnings = ["config.cache"]

# Markdown that reads as well on a forge
myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 4

# API reference
autosummary_ignore_module_all = False  # what a module exports is what is documented
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # numpydoc's sections say them, with shapes and units
numpydoc_show_class_members = False  # the template of classes lists them
numpydoc_class_members_toctree = False

# Gallery
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "ignore_pattern": r"(^|[\\/])(?!plot_)\w+\.py$",  # scripts that take arguments, or processes
    "subsection_order": [
        f"../examples/{folder}"
        for folder in ("tables", "images", "video", "deployment", "research")
    ],
    "within_subsection_order": "ExampleTitleSortKey",
    "backreferences_dir": "auto_examples/backreferences",
    "parallel": 2,
    "download_all_examples": False,
    "show_memory": False,
    "min_reported_time": 3600,  # a time says more about the machine that built the site
    "write_computation_times": False,  # its page loads scripts from elsewhere
    "remove_config_comments": True,
    "reference_url": {"sklearn_g2d": None},
    "doc_module": ("sklearn_g2d",),
    "abort_on_example_error": False,
    "only_warn_on_example_error": False,
}
# Of these, the thumbnail shows a part: picture, and left, top, right and bottom in fractions of it.
thumbnail_parts = {
    "tables/plot_first_detector": (1, (0, 0, 0.5, 1)),
    "tables/plot_grid_search": (2, (0, 0, 0.5, 1)),
    "tables/plot_odd_cells": (1, (0, 0, 1, 0.56)),
    "images/plot_custom_features": (1, (0, 0, 0.52, 1)),
    "images/plot_inspect_parts": (1, (0, 0.505, 0.8, 0.95)),
    "images/plot_locate_defect": (1, (0, 0.5, 0.88, 0.97)),
    "video/plot_fixed_camera": (1, (0, 0, 0.6, 0.65)),
    "video/plot_video_strip": (1, (0.46, 0, 1, 1)),
    "deployment/plot_dask_search": (1, (0, 0, 0.405, 1)),
    "deployment/plot_saving_and_onnx": (1, (0, 0, 0.3, 1)),
    "research/plot_any_classifier": (1, (0, 0, 0.51, 1)),
    "research/plot_comparison_with_pyod": (1, (0, 0, 0.5, 0.5)),
    "research/plot_generator_snapshots": (1, (0, 0, 0.51, 0.48)),
}

# Pages: nothing comes from another server
html_theme = "pydata_sphinx_theme"
html_title = "sklearn_g2d"
html_math_renderer = "mathml"
html_favicon = "_static/favicon.svg"
html_context = {"default_mode": "auto"}
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_search_scorer = str(DOCS / "_static" / "search_scorer.js")
html_copy_source = False
html_show_sourcelink = False
html_sidebars = {"getting_started": [], "changelog": [], "contributing": []}
html_theme_options = {
    "navigation_with_keys": False,
    # Tables of results take the room of the page's contents.
    "secondary_sidebar_items": {"[!r]*": ["page-toc"], "results/*": []},
    "show_prev_next": False,
    "footer_start": ["copyright"],
    "footer_end": [],
    "show_toc_level": 2,
}

# Where the search leads first from words that users type and pages do not have in a title. A word
# of the list is also found by a part of it, so that plurals serve both.
search_words = {
    "checkpoints": ["checkpoints", "interrupted", "resume"],
    "contributing": ["contribute", "license"],
    "conventions": ["signs", "labels", "scores"],
    "from_anomalib": ["anomalib"],
    "from_pyod": ["pyod"],
    "getting_started": ["install", "pip", "extras", "pipelines", "fit", "predict", "one class"],
    "images": ["images", "embeddings"],
    "index": ["cite", "citation", "bibtex"],
    "inspection": ["photographs", "defects", "flaws", "industrial inspection"],
    "maps": ["heatmaps", "localization"],
    "model_selection": ["grid search", "hyperparameters", "cross validation", "tuning"],
    "model_selection#scorers": ["roc auc", "auroc", "scorers"],
    "results/comparison": ["benchmarks", "comparison"],
    "results/inspection": ["mvtec"],
    "results/speed": ["speed", "runtime"],
    "results/times": ["time"],
    "saving": ["save", "load", "export", "onnx", "pickle", "deployment"],
    "scaling": ["gpu", "cuda", "dask", "memory", "parallel", "large data"],
    "thresholds": [
        "thresholds",
        "conformal",
        "contamination",
        "false alarms",
        "false positives",
        "p-values",
    ],
    "training": ["callbacks"],
    "tutorials": ["tutorial"],
    "tutorial_table": [
        "missing values",
        "nan",
        "categorical",
        "text columns",
        "unlabelled",
        "unsupervised",
    ],
    "user_guide#why-a-row-is-an-outlier": [
        "explain",
        "explainability",
        "shap",
        "feature importance",
    ],
    "video": ["video", "cameras", "surveillance", "streaming", "real time"],
}

# Prompts are not part of what is copied.
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True


def skip_inherited(app, kind, name, member, skip, options) -> bool | None:
    """Leave methods that scikit-learn and PyOD bring, and document, to their own pages."""
    module = getattr(member, "__module__", None) or ""
    return True if module.startswith(("sklearn.", "pyod.")) else None


def setup(app) -> None:
    """Change what the extensions above do."""
    app.connect("autodoc-skip-member", skip_inherited)
