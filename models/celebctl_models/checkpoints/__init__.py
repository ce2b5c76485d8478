"""Stable-Diffusion-family checkpoints: locating, downloading and loading them."""
