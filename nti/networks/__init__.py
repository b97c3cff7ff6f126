"""The networks of Stable Diffusion v1: UNet, autoencoder and CLIP text tower."""
