"""Figures: arrays in, matplotlib Figures out."""
