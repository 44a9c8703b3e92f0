"""The verb serve: from flags to a server, which needs the extra [serve] (and [ray] for replicas)."""

import argparse
import logging
import os
from pathlib import Path
from typing import Any

from unidiffuser import __version__
from unidiffuser.cli.extras import need
from unidiffuser.cli.terminal import Terminal, Terminated


def open_server(args: argparse.Namespace, terminal: Terminal) -> None:
    """Serve until a signal comes; ValueError if an extra is missing or the flags make no sense."""
    need("serve")
    tokens = [*args.token, *filter(None, os.environ.get("UNIDIFFUSER_TOKEN", "").split(","))]
    level = logging.WARNING if args.quiet else logging.INFO
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s")
    models, data = args.model or ["scenes"], Path(args.data_dir) if args.data_dir else None
    shown = f"[{args.host}]" if ":" in args.host else args.host
    listening: dict[str, Any] = {"library": __version__, "host": args.host, "port": args.port, "tokens": tokens}
    if args.ray:
        need("ray")
        from unidiffuser.server.replicas import serve_on_ray

        terminal.say(f"the studio will be at http://{shown}:{args.port} (Ray, {args.replicas} replicas)")
        served = serve_on_ray(models, data=data, replicas=args.replicas, **listening)
    else:
        from unidiffuser.server.serve import serve

        at = f"the studio is at http://{shown}:{args.port} (Ctrl-C ends it)"
        served = serve(models, data=data, devices=args.device or ["cpu"], opened=lambda: terminal.say(at), **listening)
    if served == "terminated":
        raise Terminated
    raise KeyboardInterrupt
