"""Instances that run: finding, reaching, opening, moving their end, and ending them with the work kept."""
