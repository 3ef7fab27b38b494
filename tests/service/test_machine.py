"""Machines tell their own processes from others'."""

import os
import subprocess
import sys

from service.machine import is_gone, machine_name

NOBODY = str(2**22 + 1)  # above all numbers of processes


def test_all_processes_of_a_machine_have_one_name_for_it():
    program = "from service.machine import machine_name; print(machine_name())"
    told = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == machine_name()


def test_a_process_is_gone_only_if_it_was_of_this_machine_and_is_not_there():
    assert is_gone(machine_name(), NOBODY)
    assert not is_gone(machine_name(), str(os.getpid()))
    assert not is_gone(f"{machine_name()}0", NOBODY)
    assert not is_gone(machine_name(), "../1")
