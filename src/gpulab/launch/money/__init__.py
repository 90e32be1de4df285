"""What the ledger, the credit and the budgets say around a launch. Decides nothing: `spending` and `reporting` do."""
