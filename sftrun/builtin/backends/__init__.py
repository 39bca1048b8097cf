"""Backends: they load, train and save a model."""

import logging

# peft imports bitsandbytes, which then logs that a faster kernel could be installed
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
