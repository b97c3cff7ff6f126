"""The diffusion process: the noise schedule and one step of it."""
