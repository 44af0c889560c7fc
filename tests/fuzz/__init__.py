"""Fuzz targets with their corpora."""
