"""GPU labs for courses on AWS spot instances, paid from each student's own credits."""

__version__ = "0.1.0"
