"""Servers that share their sessions: each session is on one of them, and goes on elsewhere when that one ends (docs/fleet.md)."""
