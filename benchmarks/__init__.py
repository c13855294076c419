"""Measurements of time, memory and quality."""
