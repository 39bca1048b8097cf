"""Models shared among processes: FSDP2 and DeepSpeed ZeRO."""
