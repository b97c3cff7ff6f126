"""Attention ops: one op a file. Importing this package imports nothing heavy."""
