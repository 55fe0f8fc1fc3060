"""Version of this library, for modules below the package's own namespace."""

VERSION = "0.1.0"
