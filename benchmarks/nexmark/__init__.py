"""Nexmark on the runtime and on its peers: the stream, the declared queries, their oracle, and the slices."""
