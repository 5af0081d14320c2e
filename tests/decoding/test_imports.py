import importlib
import subprocess
import sys

import pytest


@pytest.mark.parametrize("package", ["lit_hass.decoding", "lit_hass.models"])
def test_every_public_name_is_there(package):
    module = importlib.import_module(package)
    assert sorted(module._HOMES) == sorted(module.__all__)
    assert all(getattr(module, name).__name__ == name for name in module.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        module.nonsense  # noqa: B018


def test_no_lightning_below_the_modules():
    code = (
        "import sys, lit_hass.decoding as d, lit_hass.models as m\n"
        "[getattr(p, n) for p in (d, m) for n in p.__all__]\n"
        "sys.exit(any('lightning' in name for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
