"""For every test: timings are not asserted, so none fails for being slow once."""

from hypothesis import settings

settings.register_profile("skywork", deadline=None)
settings.load_profile("skywork")
