"""What runs on the instance; standard library only."""
