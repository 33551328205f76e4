"""Questions about a run that take many what-ifs at once: which examples, which groups, when and how."""
