"""The pocket models: small trained transformers that know the almanac, shipped in the package."""
