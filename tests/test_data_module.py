"""The public names of `sftrun.data` and `sftrun.hub`."""

import subprocess
import sys

import pytest

import sftrun
import sftrun.data
import sftrun.hub


@pytest.mark.parametrize("name", sftrun.data.__all__)
def test_every_public_name_of_the_data_module_is_there_and_described(name):
    assert getattr(sftrun.data, name) is not None
    assert f"`{name}" in sftrun.data.__doc__


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"module 'sftrun\.data' has no attribute 'read_sample'"):
        sftrun.data.read_sample  # noqa: B018


def test_the_data_module_is_light():
    code = "import sys, sftrun.data, sftrun.hub; print({'numpy', 'pyarrow', 'jinja2'} & {*sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_every_public_name_of_the_hub_module_is_described():
    assert all(f"`{name}(" in sftrun.hub.__doc__ and callable(getattr(sftrun.hub, name)) for name in sftrun.hub.__all__)
