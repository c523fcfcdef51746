"""What runs passes on a device: pages, windows, noise, sampler, graphs."""
