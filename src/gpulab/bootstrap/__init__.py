"""Renders what an instance is born with: cloud-init user data, within EC2's 16 KB."""
