"""Endless videos: streams, prompt switches and scripts."""
