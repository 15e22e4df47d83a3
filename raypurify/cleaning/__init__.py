"""Bulk cleaning without Ray: what is planned, read, purified and written for one unit of inputs."""
