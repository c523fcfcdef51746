"""How fast the ops are on this machine, as ratios to torch measured side by side: `lolrt bench`.

A case (cases.py) is an op at a shape and dtype: our callable, its peers (peers.py), the work it does. It is run in turns with its peers
(measure.py), after the peak of what the machine can do (peaks.py), and becomes a row (row.py) of the table. An instruction set is
fixed when the libraries are loaded, so each has a process of its own (machine.py).
"""
