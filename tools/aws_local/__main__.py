"""`make aws-local`: template.yaml on an emulator, its tasks as CPU processes, an address and a key.

    .venv/bin/python -m tools.aws_local [--model NAME=FOLDER] [--tenant NAME] [--package FOLDER]

Ctrl-C ends everything; nothing is left behind. Not a way to run the service: the emulator keeps its state in
memory, and its KMS is no cryptography.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from tensafe.contracts.errors import TensafeError
from tensafe.local.models import ModelSource
from tools.aws_local.deployment import PACKAGE, DeploymentFailed
from tools.aws_local.emulator import ROOT, DidNotStart, NotInstalled, running_ministack
from tools.aws_local.local_stack import local_stack


def main() -> int:
    """0 after a Ctrl-C, 1 if it did not come up."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", metavar="NAME=FOLDER", help="the base model (default: the demo's own)")
    parser.add_argument("--tenant", default="demo", help="whose key is printed")
    parser.add_argument("--package", type=Path, default=ROOT / PACKAGE, help="what `make function` built")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    try:
        serve(_model(arguments.model), arguments.tenant, arguments.package)
    except KeyboardInterrupt:
        return 0
    except TensafeError as error:
        print(f"aws-local: {error.message}", file=sys.stderr)
    except (NotInstalled, DidNotStart, DeploymentFailed, TimeoutError) as error:
        print(f"aws-local: {error}", file=sys.stderr)
    return 1


def serve(model: ModelSource, tenant: str, package: Path) -> None:
    """Until Ctrl-C."""
    with tempfile.TemporaryDirectory(prefix="tensafe-aws-") as name:
        folder = Path(name)
        print("starting ministack and deploying template.yaml", flush=True)
        with (
            running_ministack(folder) as emulator,
            local_stack(emulator, package, model, folder) as stack,
        ):
            print(f"waiting for the trainer and the sampler of {stack.model_name}", flush=True)
            stack.wait_ready()
            key = stack.create_key(tenant)
            public_key = folder / "public_key.pem"
            public_key.write_text(stack.tensafe("privacy", "public-key").stdout)
            print(f"ready {stack.url}")
            print(f"key   {key}")
            print(f"logs  {folder}")
            print("\nFine-tune on it, in another terminal:")
            print(
                f"  TINKER_API_KEY={key} .venv/bin/python examples/private_finetune.py "
                f"--url {stack.url} --public-key {public_key}"
            )
            print("\nCommands work on it with these variables:")
            for variable, value in sorted(stack.environment().items()):
                print(f"  export {variable}='{value}'")
            print(f"\nThe demo spends all of the tenant {tenant}'s budget. With them, another tenant's key:")
            print("  .venv/bin/tensafe keys create --tenant another --scope train,sample")
            print("\nCtrl-C ends it, in up to half a minute.", flush=True)
            signal.pause()


def _model(given: str | None) -> ModelSource:
    if given is not None:
        return ModelSource.parse(given)
    sys.path.insert(0, str(ROOT / "examples"))
    from make_base_model import NAME, ensure_base_model  # noqa: PLC0415 - a script of another folder

    return ModelSource(NAME, str(ensure_base_model().path))


if __name__ == "__main__":
    sys.exit(main())
