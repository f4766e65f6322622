"""Training: one streaming pass in event time, checkpoints, and the comparison of numerics after it."""
