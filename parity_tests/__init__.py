"""Holds both packages to each other, and both to the recorded runs of the published code."""
