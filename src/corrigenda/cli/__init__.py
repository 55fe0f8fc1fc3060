"""The command `corrigenda`: a module for each group of commands; torch is imported late."""
