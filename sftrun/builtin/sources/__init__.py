"""Sources: they yield rows."""
