"""Looking after an account: `init`, `doctor`, `guard` and `sweep`."""
