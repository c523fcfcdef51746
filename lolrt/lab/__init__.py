"""The collapse laboratory: predicts sink-collapse, measures it on long rollouts, and compares policies against it.

phase: the phase kernel of rotary positions. policy: a position and window policy as a line of text. measures: the measures, with their
definitions as docstrings. pictures: the measures on decoded video. rollout: runs policies over prompts and seeds, with the results in a
folder. report: that folder as one HTML page. plans: the experiments on a model. bases: sets of bases chosen by a rule. experiments: runs a
plan. results: the results as a file. tables: that file as a table with intervals, and as a figure.
"""
