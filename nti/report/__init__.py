"""An inversion and its edits as one page to look at."""
