"""The servers that a team shares, as processes on loopback: PostgreSQL, an S3 store, MLflow, and an SSH server."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import pytest
import requests

from mlflow_server import free_port
from support import ENVIRONMENT, ROOT

PATIENCE = 120  # seconds
# One node with two cores. It kills by SIGTERM first, and by SIGKILL ten seconds later.
SLURM = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}
SlurmdSpoolDir={folder}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
KillWait=10
NodeName={host} NodeAddr=127.0.0.1 CPUs=2
PartitionName=main Nodes=ALL Default=YES
"""


def wait_for(is_there, what, patience=PATIENCE):
    deadline = time.monotonic() + patience
    while not is_there():
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.2)


class PostgreSQL:
    """A PostgreSQL server of its own, with an empty database at `url`. It asks for passwords, as one of a team does."""

    def __init__(self, folder):
        self.programs = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("nowhere"))
        if not (self.programs / "initdb").exists():
            pytest.skip("PostgreSQL is not installed (Debian, Ubuntu: apt install postgresql)")
        user = "postgres" if os.getuid() == 0 else None  # it refuses to run as root
        if user:
            shutil.chown(folder, user)
        self.port = free_port()
        self.folder, self.url = folder, f"postgresql://postgres:hunter2@127.0.0.1:{self.port}/postgres"
        self.options = {"user": user, "cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
        (folder / "password").write_text("hunter2")
        initialize = [self.programs / "initdb", "-D", folder / "data", "-U", "postgres", "--auth=scram-sha-256"]
        subprocess.run([*initialize, f"--pwfile={folder / 'password'}"], check=True, **self.options)

    def start(self):
        settings = ["-c", "listen_addresses=127.0.0.1", "-p", str(self.port), "-k", self.folder, "-c", "fsync=off"]
        program = [self.programs / "postgres", "-D", self.folder / "data", *settings]
        self.server = subprocess.Popen(program, **self.options)
        ready = [self.programs / "pg_isready", "-h", "127.0.0.1", "-p", str(self.port)]
        wait_for(lambda: subprocess.run(ready, **self.options).returncode == 0, "PostgreSQL")

    def stop(self):
        self.server.send_signal(signal.SIGINT)  # cuts all connections
        self.server.wait()


@contextmanager
def postgresql():
    """A running PostgreSQL."""
    with TemporaryDirectory(prefix="vae-postgresql-", ignore_cleanup_errors=True) as folder:  # pytest's is root's only
        server = PostgreSQL(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def process(*command, until, what, **options):
    """A server that answers `until`, in a group of processes that is killed when the block ends."""
    with TemporaryFile("w+") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, **options)
        try:
            wait_for(lambda: until() or server.poll() is not None, what)
            if server.poll() is not None:
                log.seek(0)
                pytest.fail(f"no {what}: {log.read()}")
            yield
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def answers(url):
    try:
        with urlopen(url, timeout=5):
            return True
    except HTTPError:
        return True
    except (URLError, TimeoutError, ConnectionError):
        return False


@contextmanager
def s3(bucket, port=None):
    """The URL of a process that imitates S3, with a bucket. It takes any key, and forgets all when it ends."""
    pytest.importorskip("moto.server", reason="moto is not installed: pip install -e '.[stack]'")
    import boto3

    port = port or free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with process(*command, until=lambda: answers(f"{url}/moto-api/"), what="S3 server", env=ENVIRONMENT):
        keys = {"aws_access_key_id": "key", "aws_secret_access_key": "hunter2", "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=url, **keys).create_bucket(Bucket=bucket)
        yield url


@contextmanager
def ssh(folder):
    """The port of an SSH server that lets this user in with the key `folder`/key."""
    program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if not program:
        pytest.skip("sshd is not installed (Debian, Ubuntu: apt install openssh-server)")
    pytest.importorskip("dvc_ssh", reason="dvc-ssh is not installed: pip install -e '.[remotes]'")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd drops its privileges
    for name in ("key", "host"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    port = free_port()
    settings = ["ListenAddress=127.0.0.1", "UsePAM=no", "PasswordAuthentication=no", "StrictModes=no", "PidFile=none"]
    settings += [f"AuthorizedKeysFile={folder / 'key.pub'}", "Subsystem=sftp internal-sftp"]
    command = [program, "-D", "-f", "/dev/null", "-p", str(port), "-h", folder / "host"]
    command += [part for setting in settings for part in ("-o", setting)]
    scan = ["ssh-keyscan", "-p", str(port), "127.0.0.1"]
    with process(*command, until=lambda: subprocess.run(scan, capture_output=True).stdout, what="SSH server"):
        yield port


@contextmanager
def mlflow(postgres, s3_url, passwords, users):
    """The URL of MLflow's server as stack/compose.yaml starts it, with PostgreSQL and S3, and with users."""
    pytest.importorskip("flask_wtf", reason="mlflow[auth] is not installed: pip install -e '.[stack]'")
    database = {"PGHOST": "127.0.0.1", "PGPORT": str(postgres.port)}
    superuser = {"POSTGRES_USER": "postgres", "PGPASSWORD": "hunter2"}
    own = {"MLFLOW_DB_PASSWORD": passwords["mlflow"], "OPTUNA_DB_PASSWORD": passwords["optuna"]}
    subprocess.run([ROOT / "stack/databases.sh"], env={**ENVIRONMENT, **database, **superuser, **own}, check=True)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = {
        **{**ENVIRONMENT, **database, "PGUSER": "mlflow", "PGPASSWORD": passwords["mlflow"]},
        **{"MLFLOW_S3_ENDPOINT_URL": s3_url, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "hunter2"},
        **{"MLFLOW_AUTH_ADMIN_PASSWORD": passwords["admin"], "MLFLOW_FLASK_SERVER_SECRET_KEY": "hunter2"},
    }
    command = ["sh", ROOT / "stack/mlflow.sh", "--host=127.0.0.1", f"--port={port}", "--workers=1"]
    with process(*command, until=lambda: answers(f"{url}/health"), what="MLflow server", env=environment):
        for name in users:
            user = {"username": name, "password": passwords[name]}
            admin = ("admin", passwords["admin"])
            requests.post(f"{url}/api/2.0/mlflow/users/create", json=user, auth=admin).raise_for_status()
        yield url


@contextmanager
def slurm(folder):
    """The environment of a Slurm cluster that is this machine, with its state in `folder`."""
    if not (shutil.which("slurmctld") and shutil.which("munged")):
        pytest.skip("Slurm is not installed (Debian, Ubuntu: apt install slurm-wlm munge)")
    host, ports = socket.gethostname().split(".")[0], (free_port(), free_port())
    settings = SLURM.format(host=host, user=getpass.getuser(), ports=ports, folder=folder)
    (folder / "slurm.conf").write_text(settings)
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o600)
    environment = {"SLURM_CONF": str(folder / "slurm.conf")}
    munge = ["munged", "--foreground", "--force", f"--key-file={folder / 'key'}", f"--socket={folder / 'munge.socket'}"]
    munge += [f"--{name}-file={folder / name}" for name in ("pid", "seed", "log")]
    ask = {"capture_output": True, "text": True, "env": ENVIRONMENT | environment}
    with ExitStack() as daemons:

        def start(*command, until):
            daemons.enter_context(process(*command, until=until, what=command[0], env=ENVIRONMENT | environment))

        start(*munge, until=(folder / "munge.socket").exists)
        start("slurmctld", "-D", until=lambda: "UP" in subprocess.run(["scontrol", "ping"], **ask).stdout)
        start("slurmd", "-D", until=lambda: "idle" in subprocess.run(["sinfo", "--noheader"], **ask).stdout)
        yield environment
