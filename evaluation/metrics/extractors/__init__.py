"""Extractors of features by which sets of images are compared; a new one is one file that exports `build`."""
