"""Run the checks that are named in the arguments under Triton's interpreter, and print for each a
JSON line: its id, what went wrong or null, and the seconds it took.

Triton reads TRITON_INTERPRET when it is imported, and kernels so imported cannot be compiled ahead
of time: so this is a process of its own.
"""

import json
import os
import sys
import time
import traceback
import warnings

os.environ["TRITON_INTERPRET"] = "1"

import torch  # noqa: E402

import attention_checks  # noqa: E402 (after the variable is set)
import layer_checks  # noqa: E402

CHECKS = attention_checks.CHECKS | layer_checks.CHECKS


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # as in conftest.py
    for name in sys.argv[1:]:
        start, error = time.process_time(), None
        os.environ["PYTEST_CURRENT_TEST"] = name  # the table of errors asks for it
        try:
            CHECKS[name]("cpu")
        except Exception:
            error = traceback.format_exc()
        print(json.dumps([name, error, round(time.process_time() - start, 2)]), flush=True)


if __name__ == "__main__":
    main()
