"""Faces in photos: reading photos, detecting and recognising faces, face model packs."""
