"""The adapter holder's command line. Results are JSON on standard output; a failure is one sentence."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, NoReturn

from pydantic import ValidationError

from tensafe.contracts.errors import ConfigurationError, InvalidRequest, TensafeError
from tensafe.local.process import forbid_core_dumps
from tensafe.observability import configure_logging
from tensafe_gpu.adapter_holder.certificates import followed, keep, kept
from tensafe_gpu.adapter_holder.composition import (
    CloudHolderSettings,
    alone,
    initialise,
    open_ports,
    read_holder_settings,
)
from tensafe_gpu.adapter_holder.extraction import extraction_note
from tensafe_gpu.adapter_holder.in_clear import in_clear
from tensafe_gpu.adapter_holder.listener import Listener
from tensafe_gpu.adapter_holder.policy import Policy
from tensafe_gpu.adapter_holder.service import HolderService
from tensafe_gpu.adapter_holder.sockets import listen_address, tcp_listener, unix_listener
from tensafe_gpu.adapter_holder.store import AdapterStore, HolderPorts, Published
from tensafe_gpu.adapter_holder.watched import Watcher
from tensafe_gpu.helora.accepted import AcceptLog
from tensafe_gpu.helora.accepted_records import spent_tokens
from tensafe_gpu.helora.adapter import ServedAdapter
from tensafe_gpu.helora.renewal import of_files
from tensafe_gpu.helora.tls import Contexts, TlsFiles, server_context
from tensafe_gpu.peft_settings import CONFIG_FILE, WEIGHTS_FILE
from tensafe_gpu.process import alive_until, die_with_parent, stop_on_signals

log = logging.getLogger(__name__)

_MAX_FILE_BYTES: Final = 2 << 30


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, do, print."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0].startswith("--") and given[0] != "--help":
        given.insert(0, "serve")
    options = _parser().parse_args(given)
    options.given = given
    forbid_core_dumps()
    try:
        options.run(options)
    except TensafeError as error:
        _fail(error.message)


def _init(options: argparse.Namespace) -> None:
    settings = read_holder_settings(options.data_dir)
    if isinstance(settings, CloudHolderSettings):
        raise ConfigurationError(
            "on AWS the template makes the table, the bucket and the key; nothing to init"
        )
    _print({"key_id": initialise(settings.data_dir, options.key_file)})


def _tls(options: argparse.Namespace) -> None:
    with _opened(options) as ports:
        keep(ports, TlsFiles(options.tls_cert, options.tls_key, options.tls_ca))
    _print({"kept": True})


def _publish(options: argparse.Namespace) -> None:
    try:
        policy = Policy(tenants=options.tenants.split(","), tokens_per_site=options.tokens_per_site)
    except ValidationError as error:
        fields = sorted({str(one["loc"][0]) for one in error.errors()})
        raise InvalidRequest(f"the policy is wrong: {', '.join(fields)}") from None
    with _opened(options) as ports:
        store, files = AdapterStore(ports), _files(options.peft)
        # What can fail before it is published fails before it.
        with in_clear(options.in_clear) as write:
            published, adapter = store.publish(
                options.name, files, base_model=options.base_model, policy=policy, before=write
            )
    _print({**_shown(published), "sites": _sites(adapter)})


def _rotate(options: argparse.Namespace) -> None:
    with _opened(options) as ports:
        _print(_shown(AdapterStore(ports).rotate(options.name, options.version)))


def _revoke(options: argparse.Namespace) -> None:
    with _opened(options) as ports:
        _print(_shown(AdapterStore(ports).revoke(options.name, options.version)))


def _list(options: argparse.Namespace) -> None:
    with _opened(options) as ports:
        store = AdapterStore(ports)
        _print({"adapters": [_shown(one) for name in store.names() for one in store.versions(name)]})


def _show(options: argparse.Namespace) -> None:
    with _opened(options) as ports:
        published = AdapterStore(ports).get(options.name, options.version)
        spent = spent_tokens(ports.items, published.name, published.version, published.epoch)
    _print({**_shown(published), "tokens_by_site_and_tenant": spent})


def _serve(options: argparse.Namespace) -> None:
    die_with_parent()
    settings = read_holder_settings(options.data_dir)
    configure_logging("adapter-holder", settings.log_level)
    stop = stop_on_signals()
    with ExitStack() as opened:
        opened.enter_context(alone(settings))
        ports = opened.enter_context(_opened(options))
        service = HolderService(AdapterStore(ports), AcceptLog(ports.items))
        opened.callback(service.shelf.close)
        listener = _listener(service, ports, options)
        opened.callback(listener.close)
        listening = threading.Thread(target=listener.serve_forever, name="listener", daemon=True)
        listening.start()
        log.info("adapter holder ready", extra={"listen": options.listen})
        alive_until(stop, listening.is_alive)
    log.info("adapter holder stopped", extra={"counts": dict(service.counters)})


def _up(options: argparse.Namespace) -> None:
    """`serve` with the same options, in a process that is started again."""
    listen_address(options.listen)
    settings = read_holder_settings(options.data_dir)
    if isinstance(settings, CloudHolderSettings):
        raise ConfigurationError("on AWS, ECS starts an adapter holder again: use serve")
    with _opened(options):  # a key that is missing is said at once
        pass
    stop = stop_on_signals()
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
        signal.signal(signal.SIGHUP, lambda *_: stop.set())
    command = (sys.executable, "-m", "tensafe_gpu.adapter_holder", "serve", *options.given[1:])

    def say(what: str) -> None:
        with suppress(OSError):  # the terminal has gone
            sys.stderr.write(f"adapter holder at {options.listen}: {what}\n")
            sys.stderr.flush()

    with alone(settings, "up.lock"):
        Watcher(command, settings.data_dir, say).run(stop)


def _listener(service: HolderService, ports: HolderPorts, options: argparse.Namespace) -> Listener:
    address = listen_address(options.listen)
    if isinstance(address, Path):
        return Listener(service, unix_listener(address))
    tls = _contexts(ports, options)
    return Listener(service, tcp_listener(*address), tls=tls)


def _contexts(ports: HolderPorts, options: argparse.Namespace) -> Contexts:
    """Of the files that are named, or of what the command `tls` has sealed; either may be renewed."""
    files = (options.tls_cert, options.tls_key, options.tls_ca)
    if None not in files:
        return of_files(TlsFiles(*files), server_context)
    if files != (None, None, None) or kept(ports) is None:
        raise ConfigurationError(
            "tcp needs --tls-cert, --tls-key and --tls-ca, now or given to the command `tls`", field="listen"
        )
    return followed(ports)


@contextmanager
def _opened(options: argparse.Namespace) -> Iterator[HolderPorts]:
    """What the options or the environment name."""
    ports = open_ports(read_holder_settings(options.data_dir), options.key_file)
    try:
        yield ports
    finally:
        ports.close()


def _files(folder: Path) -> dict[str, bytes]:
    files = {}
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        path = folder / name
        try:
            if path.stat().st_size > _MAX_FILE_BYTES:
                raise InvalidRequest(f"{path} is larger than 2 GiB")
            files[name] = path.read_bytes()
        except OSError as error:
            raise InvalidRequest(f"{path} cannot be read: {error.strerror}") from error
    return files


def _shown(published: Published) -> dict[str, object]:
    tokens, width = published.policy.tokens_per_site, published.width
    told = {} if width is None else {"extraction": extraction_note(tokens, width)}
    return {
        "name": published.name,
        "version": published.version,
        "epoch": published.epoch,
        "status": published.status,
        "base_model": published.base_model,
        "digest": published.digest,
        "policy": published.policy.model_dump(),
        **told,
    }


def _sites(adapter: ServedAdapter) -> list[dict[str, object]]:
    return [
        {
            "site": name,
            "bits": site.bits,
            "x_bound": site.shape.x_bound,
            "error_a": round(site.error_a, 6),
            "error_x": round(site.error_x, 6),
        }
        for name, site in adapter.sites.items()
    ]


def _print(result: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


def _fail(message: str) -> NoReturn:
    sys.stderr.write(f"{message}\n")
    sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tensafe_gpu.adapter_holder", description=__doc__)
    commands = parser.add_subparsers(required=True)

    def command(name: str, run: object, text: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=text)
        one.set_defaults(run=run)
        one.add_argument("--data-dir", type=Path, help="or TENSAFE_DATA_DIR, or TENSAFE_TABLE etc. for AWS")
        one.add_argument("--key-file", type=Path)
        return one

    command("init", _init, "make the data directory and its key file")
    publish = command("publish", _publish, "seal a PEFT adapter and offer it")
    publish.add_argument("--name", required=True)
    publish.add_argument("--peft", type=Path, required=True)
    publish.add_argument("--base-model", required=True)
    publish.add_argument("--tenants", required=True, help="who may use it, comma-separated")
    publish.add_argument("--tokens-per-site", type=int, required=True, help="the budget of an epoch")
    publish.add_argument("--in-clear", type=Path, help="a new folder for what is served, as a PEFT adapter")
    command("list", _list, "list every version")
    for name, run, text in (
        ("show", _show, "show one version, and what it has answered"),
        ("rotate", _rotate, "begin a new epoch: new bases, new budget"),
        ("revoke", _revoke, "stop serving it, and erase it"),
    ):
        one = command(name, run, text)
        one.add_argument("--name", required=True)
        one.add_argument("--version", type=int)
    serve = command("serve", _serve, "answer key holders")
    up = command("up", _up, "serve, and start it again when it dies or stands still; on one machine")
    for one in (serve, up):
        one.add_argument("--listen", required=True, help="unix:PATH or tcp:HOST:PORT")
    tls = command("tls", _tls, "seal the certificate, for an adapter holder that is not given one")
    for name in ("cert", "key", "ca"):
        for one in (serve, up):
            one.add_argument(f"--tls-{name}", type=Path)
        tls.add_argument(f"--tls-{name}", type=Path, required=True)
    return parser
