"""Backends: they load, train and save a model."""

import logging

# peft imports bitsandbytes, which then tells everyone of a faster kernel that could be installed
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
