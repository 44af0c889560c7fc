"""xenstore, the dom0 database of domains: its client, and one in this process to try things out.

`choice.open_store` chooses by configuration; the interface is `store.Store`. Nothing is loaded with the package itself.
"""
