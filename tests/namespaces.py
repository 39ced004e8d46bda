"""Hosts on this machine: each a network namespace and a mount namespace of its own, joined by a switch.

Processes of two hosts share neither `localhost` nor, where a host is given a folder of its own, what lies at a path.
"""

import functools
import os
import pathlib
import shutil
import subprocess
from collections.abc import Mapping, Sequence

ROOT = pathlib.Path(__file__).parent.parent


@functools.cache
def missing() -> str:
    """What this machine lacks for namespaces, '' for nothing."""
    if absent := [tool for tool in ("unshare", "nsenter", "ip", "mount") if not shutil.which(tool)]:
        return f"namespaces need {', '.join(absent)}"
    try:
        Network(2).close()
    except (OSError, subprocess.CalledProcessError):
        return "making network and mount namespaces needs root"
    return ""


class Host:
    """A network and a mount namespace; it is gone with the last process in it."""

    def __init__(self):
        # It lives until its standard input closes, which it also does when this process is killed.
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._processes = [self._holder]
        self.address = ""
        try:
            self._holder.stdin.write(b"x")
            self._holder.stdin.flush()
        except BrokenPipeError as error:
            raise OSError("unshare failed") from error
        if self._holder.stdout.read(1) != b"x":
            raise OSError("unshare failed")

    @property
    def pid(self) -> int:
        """Of the process that keeps the namespaces."""
        return self._holder.pid

    def command(self, command: Sequence[str], folder: str | os.PathLike = ROOT) -> list[str]:
        """`command` as run in this host, in `folder`."""
        enter = ["nsenter", f"--target={self.pid}", "--net", "--mount"]
        return [*enter, "env", f"--chdir={folder}", *map(str, command)]

    def run(self, *command: str) -> None:
        """Runs a command to its end; raises CalledProcessError where it fails."""
        subprocess.run(self.command(command, "/"), check=True, capture_output=True)

    def start(self, command: Sequence[str], folder: str | os.PathLike = ROOT, **settings) -> subprocess.Popen:
        """Starts a process, which ends with the network; `settings` are those of `Popen`."""
        process = subprocess.Popen(self.command(command, folder), **settings)
        self._processes.append(process)
        return process

    def show(self, source: str | os.PathLike, at: str | os.PathLike) -> None:
        """Makes the file or folder `source` appear at the path `at`, which exists, in this host alone."""
        self.run("mount", "--bind", str(source), str(at))

    def close(self) -> None:
        """Kills what was started here."""
        for process in reversed(self._processes):
            process.kill()
            process.wait()


class Network:
    """Hosts that reach each other at 10.77.0.1, 10.77.0.2, ...; a context manager."""

    def __init__(self, hosts: int):
        self.hosts: list[Host] = []
        try:
            for number in range(hosts):
                self._add(number)
        except BaseException:
            self.close()
            raise

    def _add(self, number: int) -> None:
        host = Host()
        self.hosts.append(host)
        host.address = f"10.77.0.{number + 1}"
        host.run("ip", "link", "set", "lo", "up")
        switch, port = self.hosts[0], "switch"
        if number == 0:
            switch.run("ip", "link", "add", port, "type", "bridge")
        else:
            port = "port"
            switch.run(*f"ip link add to{number} type veth peer name {port} netns {host.pid}".split())
            switch.run(*f"ip link set to{number} master switch up".split())
        host.run("ip", "address", "add", f"{host.address}/24", "dev", port)
        host.run("ip", "link", "set", port, "up")

    def name(self, addresses: Mapping[str, Host], folder: pathlib.Path) -> None:
        """Lets all hosts find `addresses` under these names; the file that says so is written into `folder`."""
        lines = [f"{host.address} {name}" for name, host in addresses.items()]
        (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
        for host in self.hosts:
            host.show(folder / "hosts", "/etc/hosts")

    def close(self) -> None:
        """Kills every process and with them the hosts."""
        for host in self.hosts:
            host.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
