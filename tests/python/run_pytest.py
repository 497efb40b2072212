"""Runs pytest files for ctest: exit status 77 (skipped) where everything in them was skipped.

    run_pytest.py FILE..."""
import sys

import pytest

status = pytest.main(["-q", "-rs", "-p", "no:cacheprovider", *sys.argv[1:]])
sys.exit(77 if status == pytest.ExitCode.NO_TESTS_COLLECTED else status)
