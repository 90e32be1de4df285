"""Where a launch could go and what it would cost: from the wish to a plan for each region in turn."""
