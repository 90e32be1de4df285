"""Joins ledgers, roster and statements into one report. Hides how sums are kept exact; collects what does not add up."""
