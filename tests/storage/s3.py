"""A real S3 server process on loopback (`moto`), and what a test does with it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backbone.clock import SystemClock
from backbone.storage.s3 import LocalCache, ObjectFiles

BUCKET = "candles-of-ours"

# One request at a time: this server does not make the condition of a put and the put one step, as S3 does.
_SERVER = """
import logging, sys
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple
logging.getLogger("werkzeug").disabled = True
run_simple("127.0.0.1", int(sys.argv[1]), DomainDispatcherApplication(create_backend_app), threaded=False)
"""


class S3Server:
    """A server process with one bucket."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._process = subprocess.Popen([sys.executable, "-c", _SERVER, str(self.port)], stderr=subprocess.DEVNULL)
        clock = SystemClock()
        deadline = clock.monotonic() + 60
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    break
            assert clock.monotonic() < deadline, "the S3 server did not start"
            time.sleep(0.05)  # a loop without a pause takes the time that the server needs

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "very-secret",
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }

    def make_bucket(self, name: str = BUCKET) -> None:
        import boto3

        client = boto3.client("s3", endpoint_url=self.url, region_name="us-east-1", aws_access_key_id="key",
                              aws_secret_access_key="very-secret")  # fmt: skip
        client.create_bucket(Bucket=name)
        client.close()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="module")
def s3_server() -> Iterator[S3Server]:
    pytest.importorskip("obstore")
    pytest.importorskip("moto.server")
    pytest.importorskip("boto3")
    server = S3Server()
    server.make_bucket()
    yield server
    server.close()


@pytest.fixture
def place(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """An address of this test's own, with the environment that leads there."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("BACKBONE_CACHE_DIR", str(tmp_path / "cache"))
    return f"s3://{BUCKET}/{request.node.name.replace('[', '-').replace(']', '')}-{os.getpid()}"


def objects(place: str, cache: Path, limit: int = 1 << 30) -> ObjectFiles:
    return ObjectFiles(place, SystemClock(), LocalCache(cache, limit))
