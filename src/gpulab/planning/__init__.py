"""Decides what to launch, in which order, and every refusal. Pure: values in, values out."""
