"""The training loop and what a run leaves behind. Knows no network, no data set, no regularizer by name."""
