"""Runs passes of the model on a device: pages, windows, noise, sampler, graphs."""
