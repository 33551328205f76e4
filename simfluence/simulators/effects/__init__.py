"""Effects of training examples on deviations from the mean trajectory, by one regression."""
