"""Simulated AWS: moto, a realism layer, and the machines behind its instances."""
