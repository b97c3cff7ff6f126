"""Ops of the UNet: one op a file with its reference, its kernels in files beside it.

Importing this package imports nothing heavy.
"""
