"""Search of a method's options for one model, on facts that the model knows."""
