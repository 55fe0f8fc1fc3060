"""Knowledge Neurons."""
