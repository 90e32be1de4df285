"""The command line: parse, call, show. Decides nothing."""
