"""Data: download and verify, read, binarize, batch."""
