"""The accuracy of sub-networks, of one or of many at once."""
