"""What a run will take, before anything is loaded: parameters, steps, memory, time; and what to change."""
