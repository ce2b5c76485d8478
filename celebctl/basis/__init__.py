"""The celeb basis: celebrity names, the principal components of their token embeddings, and identities in that basis."""
