"""How fast pictures come, beside diffusers on the same weights in the same run.

Every contestant lives in a process of its own (worker.py), and they take turns picture by picture, so that whatever
else the machine does meanwhile falls on all of them alike: what is told are ratios of pairs, not of two separate runs.
"""
