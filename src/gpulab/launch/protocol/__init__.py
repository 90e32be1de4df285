"""Asking for an instance so that a kill at any moment leaves one or none: journal, token, call, settlement, and the end armed."""
