"""Training a mapper (face feature to coefficients) for any model from a folder of photos."""
