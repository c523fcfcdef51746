"""Positions: the frequencies of heads, the rotation tables, and the sink gate."""
