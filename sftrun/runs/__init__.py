"""A run directory and its life: what it holds, how it is locked, resumed and explained."""
