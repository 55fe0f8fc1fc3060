"""SERAC."""
