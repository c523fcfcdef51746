"""VAEs that turn video frames to latents and back, a few at a time, for ever."""
