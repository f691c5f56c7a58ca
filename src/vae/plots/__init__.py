"""Every figure of the project: arrays in, matplotlib Figures out."""
