"""An example plugin of sftrun: a formatter, a masker and a judge for support tickets."""
