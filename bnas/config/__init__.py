"""Configuration files: their keys, how they are read, and what they say as settings of the API."""
