"""mini: a drawn world of people, and everything that makes a small diffusion model of it.

Only the training script and the measurements look in here. Learning, export and runtime see an ordinary model folder.
"""
