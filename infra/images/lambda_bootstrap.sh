#!/bin/sh
# As Lambda's own: the runtime's client and the function's package, and nothing that Debian may have installed (-S).
export AWS_EXECUTION_ENV=AWS_Lambda_python3.11 PYTHONPATH="/var/runtime:$LAMBDA_TASK_ROOT" PYTHONDONTWRITEBYTECODE=1
exec /usr/bin/python3 -S -s -m awslambdaric "$_HANDLER"
