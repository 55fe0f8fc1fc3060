"""What an edit of a model will take, from its configuration alone."""
