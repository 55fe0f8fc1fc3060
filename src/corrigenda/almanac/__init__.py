"""Facts of the world as triples with phrasings, and documents written from them; text only."""
