"""What pictures show, and how good edits are: captions and metrics by weights of the user's."""
