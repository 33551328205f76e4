"""Compiled loops (numba); files are imported where they are first used, since compiling takes seconds."""
