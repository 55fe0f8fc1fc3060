"""Networks that learn to edit, and the shifted model they are trained on."""
