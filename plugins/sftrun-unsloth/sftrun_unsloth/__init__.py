"""Unsloth for sftrun: a backend and an exporter. What imports unsloth is imported in a worker process alone."""
