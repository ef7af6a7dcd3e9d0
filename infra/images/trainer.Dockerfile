# The trainer: one GPU, one base model, many runs.
# tools/images.py prepares the context: the sources, and requirements.txt with the exact versions of the accelerator's lock,
# requirements/lock.txt or lock-cuda.txt. The build fails if torch is not that accelerator's.
ARG BASE=python:3.11-slim-bookworm
# cpu or cuda.
ARG ACCELERATOR=cpu

FROM ${BASE} AS wheels
# Where pip finds packages, if not on PyPI.
ARG PIP_OPTIONS=""
COPY . /src
RUN python3 -m venv /build \
    && /build/bin/pip --disable-pip-version-check wheel -q ${PIP_OPTIONS} --no-deps --wheel-dir /wheels -r /src/requirements.txt \
    && /build/bin/pip --disable-pip-version-check wheel -q ${PIP_OPTIONS} --no-deps --wheel-dir /wheels /src

FROM ${BASE}
ARG ACCELERATOR
# Wheels alone are installed, none of the sources come along, and pip does not stay.
RUN --mount=type=bind,from=wheels,source=/wheels,target=/wheels \
    python3 -m venv /opt/tensafe \
    && /opt/tensafe/bin/pip --disable-pip-version-check install -q --no-index --no-deps --no-compile /wheels/*.whl \
    && /opt/tensafe/bin/pip uninstall -q -y pip \
    && useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin tensafe
# Fails the build if anything of ours is imported from anywhere but site-packages, or a compiler came along.
# It imports the task: byte code of what the task imports, and of no more, is left behind.
RUN --mount=type=bind,source=check_image.py,target=/check_image.py HOME=/nonexistent /opt/tensafe/bin/python /check_image.py trainer ${ACCELERATOR}
ENV PATH=/opt/tensafe/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PYTHONSAFEPATH=1 HOME=/tmp \
    TENSAFE_ALIVE_FILE=/tmp/tensafe-alive NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /tmp
USER 10001:10001
HEALTHCHECK --interval=30s --timeout=10s --retries=3 --start-period=300s CMD ["python", "-m", "tensafe_gpu.healthcheck"]
CMD ["python", "-m", "tensafe_gpu.trainer", "--help"]
