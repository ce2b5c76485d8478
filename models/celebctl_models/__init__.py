"""Other people's networks, adapted at the door: diffusion checkpoints, face analysers and the table of known models.

Importing this package costs nothing: torch, diffusers, transformers and insightface are imported by the functions
that need them. What this room does not know: names of learned people, bundles, prompts.
"""
