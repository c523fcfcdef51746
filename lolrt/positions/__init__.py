"""Positions: frequencies of heads, rotation tables, and the gate on the sinks that phases decide."""
