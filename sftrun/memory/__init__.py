"""Does a recipe fit this machine: estimates, measurements, and what to change."""
