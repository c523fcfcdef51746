"""The collapse laboratory: predicts sink-collapse, measures it on long rollouts, and compares policies against it.

phase: the phase kernel of rotary positions. policy: a position and window policy as a line of text. measures: what is measured, with
its definition as docstring. pictures: what is measured on decoded video. rollout: runs policies over prompts and seeds into a folder.
report: that folder as one HTML page. experiments: the questions asked of a model, as plans with tables of intervals.
"""
