"""The networks: the causal DiT and the VAEs."""
