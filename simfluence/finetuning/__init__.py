"""Real fine-tuning experiments, recorded as any user would record theirs."""
