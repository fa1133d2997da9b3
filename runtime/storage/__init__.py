"""Files on disk, all written atomically."""
