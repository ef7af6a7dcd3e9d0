"""Prints the parameters of template.yaml that follow from the base model.

    .venv/bin/python tools/stack_parameters.py NAME=FOLDER     # then: sam deploy --parameter-overrides ...

FOLDER has the model's config.json and tokenizer; on a task the same files lie in /models/FOLDER's name.
"""

from __future__ import annotations

import argparse
import json
import sys

from tensafe.contracts.errors import TensafeError
from tensafe.local.models import ModelSource
from tensafe.operations.doorbell import sample_queue


def stack_parameters(name: str, models: str) -> dict[str, str]:
    """`models` is the JSON of TENSAFE_MODELS."""
    return {"ModelName": name, "ModelSlug": sample_queue(name).removeprefix("sample-"), "Models": models}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", metavar="NAME=FOLDER")
    parser.add_argument("--max-lora-rank", type=int)
    arguments = parser.parse_args()
    try:
        info = ModelSource.parse(arguments.model).resolve(max_lora_rank=arguments.max_lora_rank)
    except TensafeError as error:
        sys.exit(error.message)
    folder = info.path.rstrip("/").rpartition("/")[2]
    served = info.model_copy(update={"path": f"/models/{folder}"}).model_dump(mode="json", exclude_none=True)
    for key, value in stack_parameters(info.name, json.dumps([served], separators=(",", ":"))).items():
        print(f"{key}='{value}'")


if __name__ == "__main__":
    main()
