"""Weights of other software in, and out to it."""
