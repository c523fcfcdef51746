"""Measures how fast the ops are on this machine, as ratios to torch measured side by side: `lolrt bench`.

A case (cases.py) is an op with a shape and a dtype: our callable, its peers (peers.py), and the amount of work. It runs in turns with its
peers (measure.py), after a measurement of the machine's peak (peaks.py), and becomes a row (row.py) of the table. The instruction set is
fixed when the libraries are loaded, so each instruction set has a process of its own (machine.py).
"""
