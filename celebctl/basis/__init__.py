"""The celeb basis: celebrity names, principal components of their token embeddings, and identities in that basis."""
