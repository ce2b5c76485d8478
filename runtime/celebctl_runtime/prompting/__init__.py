"""From a prompt to token ids: learned names, tokenization, layouts and likeness."""
