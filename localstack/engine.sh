#!/usr/bin/env bash
# Sourced: ends the caller with SKIPPED, and why, where no Docker engine answers.
if ! command -v docker > /dev/null; then
    echo "SKIPPED: there is no docker command on this machine"
    exit 0
fi
if ! docker info > /dev/null 2>&1; then
    echo "SKIPPED: no Docker engine answers on this machine"
    exit 0
fi
