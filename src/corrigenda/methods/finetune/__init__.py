"""FT, FT-L, FT-M, LocFT-BF."""
