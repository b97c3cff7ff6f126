"""Inversion of an image: from its latent to z_T, and to the null embeddings that lead back."""
