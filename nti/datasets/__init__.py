"""Runs over many images: what a manifest asks for, made item by item, here or on a cluster."""
