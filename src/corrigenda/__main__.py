"""Lets `python -m corrigenda` do what the command `corrigenda` does."""

from corrigenda.cli.main import run

run()
