"""Decoders in flax.nnx with Hugging Face names, their checkpoints and their tokenizers."""
