"""How mini's weights are made: seeded data, five small trainings, and the folder that ships. See ``train.py``."""
