"""Load the fixtures of `support/shared_fixtures.py` where tests run."""


def pytest_configure(config):
    """With `-n`, the first process runs no test, and would import torch before it starts the workers."""
    is_worker = hasattr(config, "workerinput")
    if is_worker or config.getoption("dist", "no") == "no":
        config.pluginmanager.import_plugin("shared_fixtures")
