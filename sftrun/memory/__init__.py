"""Memory of a training on this machine: estimates, measurements, and changes that make a recipe fit."""
