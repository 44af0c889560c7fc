"""What unplugd has from the host: the service manager, the runtime directory, and what an earlier process left."""
