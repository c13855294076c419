"""Tests in several processes. Nothing here is in the wheel."""
