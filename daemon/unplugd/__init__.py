"""unplugd: the HVM emulated device unplug protocol, its blacklist and its guest logs, for Xen's dom0."""

__version__ = "0.1.0"
