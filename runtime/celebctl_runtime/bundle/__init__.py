"""Bundles on disk: manifest, token tables, and the people stored in them."""
