"""Configuration files: their keys, how they are read, and the translation into settings of the API."""
