"""Speed of image generation, next to diffusers on the same weights in the same run.

Each contender runs in a process of its own (worker.py), and they take turns image by image, so that the machine's other
load affects all of them alike: reported are ratios of paired measurements, not of two separate runs.
"""
