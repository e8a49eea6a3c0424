"""Import of weights from other software, and export to it."""
