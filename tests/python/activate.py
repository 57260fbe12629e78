"""Starts a program with listening sockets, as a service manager does.

activate.py KIND:ADDRESS=NAME ... -- PROGRAM ARGUMENT ...

KIND is tcp or udp (ADDRESS is HOST:PORT) or unix (ADDRESS is a path).
"""
import fcntl
import os
import socket
import sys

split = sys.argv.index("--")
sockets, names = [], []
for spec in sys.argv[1:split]:
    kind, rest = spec.split(":", 1)
    address, name = rest.split("=", 1)
    if kind == "unix":
        it = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        it.bind(address)
    else:
        it = socket.socket(socket.AF_INET, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
        host, port = address.rsplit(":", 1)
        it.bind((host, int(port)))
    if kind != "udp":
        it.listen(64)
    sockets.append(it)
    names.append(name)

# Out of the way first: a number may be another's target.
high = [fcntl.fcntl(it.fileno(), fcntl.F_DUPFD_CLOEXEC, 100) for it in sockets]
for it in sockets:
    it.close()
for number, fd in enumerate(high, 3):
    os.dup2(fd, number, inheritable=True)
os.environ["LISTEN_PID"] = str(os.getpid())
os.environ["LISTEN_FDS"] = str(len(high))
os.environ["LISTEN_FDNAMES"] = ":".join(names)
os.execvp(sys.argv[split + 1], sys.argv[split + 1 :])
