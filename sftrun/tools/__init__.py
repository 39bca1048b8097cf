"""The Python functions behind commands: inspect, plan, rehearse, chat and generate."""
