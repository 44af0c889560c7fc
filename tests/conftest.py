"""What all tests share: the lab's fixtures and hypothesis' profile."""

from hypothesis import HealthCheck, settings

pytest_plugins: list[str] = [
]

# A slow and busy machine must not make a property false.
settings.register_profile("unplugd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unplugd")
