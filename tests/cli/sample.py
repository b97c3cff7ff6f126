"""What the tests of the command line invert, and how few steps they take."""

__all__ = ["CAPTION", "FEW"]

CAPTION = "a purple circle on snow"
FEW = ["--steps", "4", "--device", "cpu"]
