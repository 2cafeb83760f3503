"""Checked echoes over connections that are kept, until standard input ends: echoes.py IDLE HOST...

IDLE more connections ask once at the beginning and once at the end.

Every answer is the number of the line in its connection and the line. A connection that breaks is not opened again. Prints `ready`, at the end
how many echoes were checked, how many datagrams were answered, and the longest pause in ms."""
import random
import resource
import socket
import sys
import threading
import time

stop = threading.Event()
lines, datagrams, errors, pauses = [], [], [], []
warm = threading.Semaphore(0)


def checked(work):
    def run(*args):
        try:
            work(*args)
        except Exception as error:
            errors.append(f"{args}: {error!r}")
            warm.release()
    return run


@checked
def ask(host, port, longest):
    connection = socket.create_connection((host, port), timeout=30)
    answers = connection.makefile("rb")
    rng, count, pause = random.Random(f"{host} {port} {longest}"), 0, 0
    while not stop.is_set():
        line = rng.randbytes(rng.randrange(1, longest)).hex().encode() + b"\n"
        cut = rng.randrange(len(line))
        began = time.monotonic()
        # In another thread: a long line's answer has to be read meanwhile.
        sender = threading.Thread(target=lambda: (connection.sendall(line[:cut]), time.sleep(0.002), connection.sendall(line[cut:])))
        sender.start()
        answer = answers.readline()
        sender.join()
        count += 1
        pause = max(pause, time.monotonic() - began)
        if answer != b"%d %s" % (count, line):
            raise ValueError(f"answer {answer[:40]!r}... to line {count}, {line[:30]!r}...")
        if count == 3:
            warm.release()
    pauses.append(pause)
    lines.append(count)


@checked
def call(host, port):
    udp = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    udp.connect((host, port))
    udp.settimeout(0.2)
    last, sent, got = 0, 0, 0
    while not stop.is_set():
        sent += 1
        udp.send(b"%d" % sent)
        try:
            number, payload = udp.recv(2000).split(b" ")
        except (TimeoutError, ConnectionRefusedError):
            continue
        # One that was late is no answer to the last, but the server's count goes on and never begins anew.
        if int(number) <= last or int(payload) > sent:
            raise ValueError(f"datagram {number} after {last}, {payload} of {sent}")
        last, got = int(number), got + 1
        if got == 3:
            warm.release()
        stop.wait(0.005)
    datagrams.append(got)


hosts = sys.argv[2:]
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
idle = [socket.create_connection((hosts[n % len(hosts)], 7000), timeout=30) for n in range(int(sys.argv[1]))]


def round_of_idle(number):
    for n, connection in enumerate(idle):
        connection.sendall(b"idle %d\n" % n)
    for n, connection in enumerate(idle):
        answer = connection.makefile("rb").readline()
        if answer != b"%d idle %d\n" % (number, n):
            errors.append(f"idle connection {n}: {answer!r} in round {number}")


round_of_idle(1)
threads = []
for host in hosts:
    threads += [threading.Thread(target=ask, args=(host, 7000, longest)) for longest in (50, 51, 52, 20_000, 400_000)]
    threads.append(threading.Thread(target=call, args=(host, 7000)))
threads.append(threading.Thread(target=ask, args=(hosts[0], 7001, 60)))
for thread in threads:
    thread.start()
for _ in threads:
    warm.acquire()
if not errors:
    print("ready", flush=True)
    sys.stdin.read()
stop.set()
for thread in threads:
    thread.join()
round_of_idle(2)
if errors or 0 in lines + datagrams:
    sys.exit(f"{errors} {lines} {datagrams}")
print(f"lines {sum(lines)} datagrams {sum(datagrams)} pause {max(pauses) * 1e3:.0f}", flush=True)
