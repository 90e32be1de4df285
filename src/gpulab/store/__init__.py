"""The user's own folder: configuration, keys, known hosts, journal, ledger."""
