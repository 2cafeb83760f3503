"""A program that hands itself over and goes wrong: handing.py NAME HOW, as docs/handoff.md describes the bytes.

HOW is `die-saving`, `refuse-saving`, `hand-a-file` at the source; `refuse-loading`, `slow-loading`, `die-loading`, `die-ready` at the target. At the source it says
each word that it hears."""
import json
import os
import socket
import struct
import sys
import time

name, how = sys.argv[1:]
netmig = socket.socket(socket.AF_UNIX)
netmig.connect(os.environ["NETMIG_HANDOFF_SOCKET"])


def put(kind, body, fds=()):
    header = struct.pack("<4sHHI", b"NMHO", 1, kind, len(body))
    if fds:
        socket.send_fds(netmig, [header], fds)
    else:
        netmig.sendall(header)
    netmig.sendall(body)


def exactly(size):
    data = b""
    while len(data) < size:
        more = netmig.recv(size - len(data))
        if not more:
            sys.exit("netmig has closed the connection")
        data += more
    return data


def frame():
    header, fds, _, _ = socket.recv_fds(netmig, 12, 253)
    header += exactly(12 - len(header))
    magic, version, kind, size = struct.unpack("<4sHHI", header)
    assert (magic, version) == (b"NMHO", 1)
    return kind, exactly(size), fds


def say(**message):
    put(1, json.dumps(message).encode())


def hear():
    kind, body, _ = frame()
    assert kind == 1
    return json.loads(body)


if how in ("die-saving", "refuse-saving", "hand-a-file"):
    say(type="register", name=name, version="1", command=["/srv/echo"])
    while True:
        word = hear()["type"]
        print(word, flush=True)
        if word != "save":
            continue
        if how == "die-saving":
            # In the middle of its state.
            say(type="state", version="1", bytes=100, descriptors=0)
            put(2, b"x" * 50)
            os.kill(os.getpid(), 9)
        elif how == "refuse-saving":
            say(type="refused", why="not in this weather")
        else:
            say(type="state", version="1", bytes=0, descriptors=1)
            put(3, struct.pack("<I", 7), [os.open("/etc/passwd", os.O_RDONLY)])
else:
    say(type="load", name=name, version="1", command=["/srv/echo"])
    assert hear()["type"] == "registered"
    state = hear()
    assert state["type"] == "state", state
    got = fds = 0
    while got < state["bytes"] or fds < state["descriptors"]:
        kind, body, came = frame()
        got += len(body) if kind == 2 else 0
        fds += len(came)
    if how == "slow-loading":
        open("/tmp/loading", "w").close()
        time.sleep(3)
    if how in ("refuse-loading", "slow-loading"):
        say(type="refused", why="the state is not to my taste")
        hear()
    if how == "die-ready":
        say(type="ready")
    os.kill(os.getpid(), 9)
