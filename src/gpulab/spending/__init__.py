"""AWS's billing rules as pure functions: timelines and prices in, charges out."""
