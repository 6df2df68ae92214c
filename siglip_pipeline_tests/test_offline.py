"""No test asks the network, whichever of them runs first."""

import os
import socket
import subprocess
import sys

import pytest

from siglip_pipeline_tests.conftest import refuse_other_machines

SAYS_WHETHER_IT_ASKS = """
import siglip_pipeline_tests.conftest
from huggingface_hub import constants
print(constants.HF_HUB_OFFLINE)
"""


def test_the_hub_is_never_asked() -> None:
    """Its client reads the environment once: when the first test that needs it imports it."""
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        [sys.executable, "-c", SAYS_WHETHER_IT_ASKS],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == "True\n"


def test_another_machine_is_not_reached() -> None:
    with pytest.raises(RuntimeError, match="only this machine may be asked"):
        socket.create_connection(("192.0.2.1", 443), timeout=0.1)


def test_one_of_ipv6_is_not_reached() -> None:
    """Without a socket, which some machines refuse for IPv6."""
    with pytest.raises(RuntimeError, match="only this machine may be asked"):
        refuse_other_machines("socket.connect", (None, ("2001:db8::1", 443, 0, 0)))


def test_this_machine_is_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()
