"""Baselines: published methods with the same frozen model, photo, budget and scorer as celebctl.

Each is a training loop over diffusers modules after an official script, which `methods.METHODS` names. Docstrings state
the differences from it.
"""
