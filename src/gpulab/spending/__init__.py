"""AWS's billing rules: what a timeline cost, how long a credit lasts. Hides seconds, hours and months; refuses floats."""
