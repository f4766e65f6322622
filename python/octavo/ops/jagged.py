"""Variable-length rows of several features: the one sparse container of octavo."""
