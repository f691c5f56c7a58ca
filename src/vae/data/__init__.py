"""Data: download and verification, reading, binarization, batches."""
