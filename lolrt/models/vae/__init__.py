"""VAEs that convert video frames to latents and back, a few at a time, without end."""
