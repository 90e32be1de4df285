"""Carries plans out, in the order that survives a kill; yields events."""
