"""The backends and the exporters that are shipped keep their promises: they train the embedded model for real."""

import pytest

import sftrun
from sftrun import testing
from sftrun.testing.backend import LEARN
from sftrun.testing.bench import Bench

pytestmark = [pytest.mark.slow, pytest.mark.older, pytest.mark.timeout(600)]


@pytest.mark.parametrize("settings", [[], ["tuning.mode=lora"]], ids=["full", "lora"])
def test_the_backend_hf_keeps_its_promises(settings):
    testing.check_backend(sftrun.create("backend", "hf"), settings)


@pytest.mark.parametrize("settings", [["tuning.mode=qlora"], ["tuning.mode=lora"]], ids=["4 bits", "8 bits"])
def test_the_backend_bnb_keeps_its_promises(settings):
    pytest.importorskip("bitsandbytes")
    testing.check_backend(sftrun.create("backend", "bnb"), settings)


def test_the_exporter_merged_keeps_its_promises(tmp_path):
    bench = Bench(sftrun.create("backend", "hf"), ["tuning.mode=lora"], tmp_path)
    run = bench.trained({**LEARN, "train.max_steps": 2}).run
    testing.check_exporter(sftrun.create("exporter", sftrun.Use(use="merged")), run)
