"""Compiled loops (numba) for what numpy has no fast word for; files are imported where they are first used."""
