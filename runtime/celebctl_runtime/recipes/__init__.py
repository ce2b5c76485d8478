"""Recipes in image files: celebctl's own document, and the formats of other programs."""
