"""Answers each datagram with the slot of the worker and what it said. Takes its socket by LISTEN_FDS."""

import os
import socket

with socket.socket(fileno=3) as it:
    it.setblocking(True)
    while True:
        said, who = it.recvfrom(2048)
        it.sendto(os.environ["PHALANX_SLOT"].encode() + b" " + said, who)
