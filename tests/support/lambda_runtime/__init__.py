"""Lambda without Lambda: the Runtime API on loopback, and the functions' package under `awslambdaric`.

What is real: the package as it is uploaded, the runtime's own client, the environment and nothing beside it,
import errors, deadlines, the caps on payloads. What is not: IAM, limits of memory and CPU, a read-only file
system, Amazon Linux's own libraries, freezing between events.
"""

from tests.support.lambda_runtime.function import Crashed, Function, InitFailed, TimedOut, TooLarge
from tests.support.lambda_runtime.gateway import http_event, http_response

__all__ = ["Crashed", "Function", "InitFailed", "TimedOut", "TooLarge", "http_event", "http_response"]
