"""NeuralDB."""
