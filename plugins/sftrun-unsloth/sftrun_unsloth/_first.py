"""Imports unsloth before what it patches; every other module of this plugin that needs it imports this one first."""

import importlib
import os
import sys
from typing import Any

import sftrun

if "unsloth" not in sys.modules and "transformers" in sys.modules:
    raise sftrun.UserError(
        "unsloth must be imported before transformers, and something in this process was earlier",
        hint="where it is an exporter, put unsloth-merged before the others",
    )

# Without a terminal unsloth installs system packages without asking: never here.
os.environ["UNSLOTH_AUTO_INSTALL"] = "0"
# It would fetch a file from the Hub to count its users.
os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
# Code that it generates would lie in the current folder.
os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(sftrun.files.cache_folder() / "unsloth"))

FastLanguageModel: Any = importlib.import_module("unsloth").FastLanguageModel
