"""Imports unsloth before the libraries that it patches; modules that need unsloth import this one first."""

import importlib
import os
import sys
from typing import Any

import sftrun

if "unsloth" not in sys.modules and "transformers" in sys.modules:
    raise sftrun.UserError(
        "unsloth must be imported before transformers, and this process has already imported transformers",
        hint="if another exporter imported it, put unsloth-merged first",
    )

# Without a terminal unsloth would install system packages without asking.
os.environ["UNSLOTH_AUTO_INSTALL"] = "0"
# unsloth would fetch a file from the Hub to count its users.
os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
# unsloth would write generated code to the current folder.
os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(sftrun.files.cache_folder() / "unsloth"))

FastLanguageModel: Any = importlib.import_module("unsloth").FastLanguageModel
