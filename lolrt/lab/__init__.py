"""The collapse laboratory: predicts sink-collapse, measures it on long rollouts, and compares policies against it.

phase: the phase kernel of rotary positions. policy: a position and window policy as a line of text. measures: what is measured, with
its definition as docstring. pictures: what is measured on decoded video. rollout: runs policies over prompts and seeds into a folder.
report: that folder as one HTML page. plans: the questions asked of a model. bases: bases that are chosen. experiments: runs a plan.
results: what it found, as a file. tables: that file as a table with intervals, and as a figure.
"""
