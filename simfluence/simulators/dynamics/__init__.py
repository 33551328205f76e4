"""Training dynamics in function space: a small kernel model trained along every curriculum."""
