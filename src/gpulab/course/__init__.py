"""The formats of course.toml and roster.csv. Every problem is reported at once, with file and line; nothing is guessed."""
