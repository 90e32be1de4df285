"""Everything that talks to an instance over ssh: pinned keys, the tunnel, copying."""
