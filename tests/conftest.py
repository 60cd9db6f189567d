"""One thread for each mathematics library, in every test process and what it starts.

Tests run beside each other (`make test`), so that the machine is full without helpers; on inputs as
small as theirs helpers cost more than they do. What the environment says goes first.
"""

from __future__ import annotations

import os

# read once, when torch, faiss or numpy is first imported: no test file has been by now
for library in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(library, "1")
