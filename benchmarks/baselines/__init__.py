"""Other people's methods, in the same harness as celebctl's: same frozen model, photo, budget and judge.

Each is a plain loop over the loaded diffusers modules that follows an official training script (named in its module).
What differs from the scripts is said where it does. They live here, not in the product.
"""
