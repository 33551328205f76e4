"""The published simulators (Guu et al. 2023): one Markov model of the loss per test example."""
