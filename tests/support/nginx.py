"""A real nginx in front of a service, with the `server` block of a recipe."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
_AROUND = """
daemon off; master_process off; worker_processes 1; pid {folder}/pid; error_log {folder}/errors;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
{server}
}}
"""


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def nginx(folder: Path, server: str, upstream: str) -> Iterator[int]:
    """The port nginx listens on; `server` as the documentation has it, listening on port 80 in
    front of 127.0.0.1:8000, which stands for `upstream`."""
    assert NGINX is not None
    folder.mkdir()
    port = free_port()
    server = server.replace("listen 80;", f"listen 127.0.0.1:{port};")
    server = server.replace("127.0.0.1:8000", upstream.removeprefix("http://"))
    (folder / "conf").write_text(_AROUND.format(folder=folder, server=server))
    process = subprocess.Popen(
        [NGINX, "-p", str(folder), "-c", str(folder / "conf")], stderr=subprocess.PIPE, text=True
    )
    try:
        for _ in range(500):
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.01)
        yield port
    finally:
        process.kill()
        process.communicate()
