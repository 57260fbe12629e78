"""A plain worker that does what it should not to the socket that it was lent, in slot 0, whenever it gets SIGUSR1.

TAMPER is `detach` (takes the program off the whole group), `shutdown` (of its socket), `stranger` (listens at the
same address with a socket of its own; the second time it closes that) or `close` (its copy, and lives on).
"""
import os
import signal
import socket
import sys
import time

SO_DETACH_REUSEPORT_BPF = 68

lent = socket.socket(fileno=3)
lent.setblocking(True)
stranger = None
closed = False


def tamper(*_):
    global stranger, closed
    how = os.environ["TAMPER"]
    if how == "detach":
        try:
            lent.setsockopt(socket.SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, 0)
        except FileNotFoundError:
            pass  # It is off already.
    elif how == "shutdown":
        lent.shutdown(socket.SHUT_RD)
    elif how == "stranger" and stranger:
        stranger.close()
    elif how == "stranger":
        stranger = socket.socket()
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        stranger.bind(lent.getsockname())
        stranger.listen(64)
    elif how == "close":
        closed = True
        lent.close()
    print("tampered", flush=True)


def serve(stream):
    text = b""
    while not text.endswith(b"\r\n\r\n"):
        more = stream.recv(8192)
        if not more:
            return
        text += more
    nonce = [line for line in text.split(b"\r\n") if line.lower().startswith(b"x-nonce: ")]
    head = [b"HTTP/1.1 200 OK", b"x-worker: %d" % os.getpid(), b"Content-Length: 3", b"Connection: close"] + nonce
    stream.sendall(b"\r\n".join(head) + b"\r\n\r\nok\n")


if os.environ.get("PHALANX_SLOT") == "0":
    signal.signal(signal.SIGUSR1, tamper)
print("serving", flush=True)
while True:
    try:
        while closed:
            time.sleep(60)
        with lent.accept()[0] as stream:
            serve(stream)
    except OSError as error:
        print("accept:", error, file=sys.stderr, flush=True)
        time.sleep(0.01)
