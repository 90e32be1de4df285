"""The machines that stand behind simulated instances."""
