"""The switches of the tests that need diffusers' Flax, in an environment of its own."""

import pytest
import torch
from diffusers.utils import logging
from transformers.utils import logging as transformers_logging

# Every layer of diffusers' Flax warns of its end when it is set up.
logging.set_verbosity_error()
logging.disable_progress_bar()
transformers_logging.set_verbosity_error()


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    # The models are so small that a second thread only waits for the first.
    torch.set_num_threads(1)
