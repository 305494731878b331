"""Time limits of the tests: when a wait counts as hung, and how long an ending thing may still be there.

A test waits for an event and never for a time to pass, so these only turn a hang into a failure.
"""

from __future__ import annotations

import os
from typing import Final

__all__ = ["BUSY", "ENDING", "HANG", "HELD"]

#: Seconds after which a single wait has hung, and its test fails. The longest waits take about two seconds on an
#: idle machine, so one that is thirty times as slow passes. Together with `BUSY` and `ENDING` it is less than the
#: `faulthandler_timeout` of pytest: the test says which wait it was and ends what it has started, before pytest
#: ends its whole process (see tests/tools/test_hangs.py). The finder of a mutant is given less: a test that passed
#: without the mutant, and waits with it, hangs.
HANG: Final = float(os.environ.get("TRIO_CONSOLE_TEST_HANG", "60"))

#: Seconds for which a test holds a call that is to hang. A wait that only a return of the call could end fails
#: before: a call that returned by itself would let it pass.
HELD: Final = HANG + 15.0

#: Seconds that a thread, a process or a socket which is ending may take to be gone. A thread that has run its last
#: line is gone within a millisecond; a killed process has to get the processor once. After that it is left behind.
ENDING: Final = 5.0

#: Seconds that the processes of a guest have to be found and to die, in place of the package's one or two. When
#: they are over the package warns, which in a test would say only how busy the machine is. It is less than `HANG`.
BUSY: Final = 30.0
