"""A signal ends a program that has not begun, wherever it comes."""

import signal
import subprocess
import sys

import pytest

# Python says of an exception in a finalizer that it is ignored, and goes on.
SCRIPT = """
import os, signal, sys
from service.core.program import leave, on_end

class Gone:
    def __del__(self):
        os.kill(os.getpid(), int(sys.argv[1]))
        len("the handler has run by now")

on_end(leave)
Gone()
print("it went on", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_a_finalizer_is_not_lost(number: signal.Signals) -> None:
    ended = subprocess.run([sys.executable, "-c", SCRIPT, str(int(number))], capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
