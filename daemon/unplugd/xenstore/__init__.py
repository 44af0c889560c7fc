"""xenstore, the database of domains in dom0: a client for xenstored, and an embedded store for tests and demos.

`choice.open_store` chooses one by the configuration; the interface is `store.Store`. The package itself loads nothing.
"""
