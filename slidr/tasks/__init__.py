"""What a pretrained network is tried on: one folder or file a task, and what all tasks share.

`scores` is what they give, `task` what they are, `start` the weights they begin with, `published` other people's
figures, `results` what a run leaves: pictures, tables and a report.
"""
