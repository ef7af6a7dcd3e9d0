# What stands in for public.ecr.aws/lambda/python:3.11 where no registry is reached: Lambda's runtime client on Debian's
# Python, at the paths and with the variables of Lambda's image. Not there: Amazon Linux, its libraries, Lambda's Python.
# tools/lambda_stand_in.py prepares the context.
ARG BASE
FROM ${BASE}
COPY runtime /var/runtime
COPY --chmod=755 lambda_bootstrap.sh /var/runtime/bootstrap
ENV LANG=en_US.UTF-8 TZ=:/etc/localtime PATH=/var/lang/bin:/usr/local/bin:/usr/bin:/bin \
    LAMBDA_TASK_ROOT=/var/task LAMBDA_RUNTIME_DIR=/var/runtime
WORKDIR /var/task
