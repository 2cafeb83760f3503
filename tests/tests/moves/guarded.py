"""Three connections to a redis: one asks and waits for the answer, one sends without a pause, one is silent. Those that wait or are silent ask for
keepalives, and give up after three seconds without. guarded.py HOST PORT; ends at a line on stdin."""
import select, socket, sys, threading, time


def connect():
    s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return s


def kept_alive():
    s = connect()
    for option, value in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 3)):
        s.setsockopt(socket.IPPROTO_TCP, option, value)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return s


def ask(s, n):
    s.sendall(b"*2\r\n$4\r\nECHO\r\n$16\r\n%016d\r\n" % n)


def read(replies, n):
    kind, text = replies.readline(), replies.readline()
    assert kind == b"$16\r\n" and text == b"%016d\r\n" % n, (n, kind, text)


def asker():
    s = kept_alive()
    replies = s.makefile("rb")
    while not done.is_set():
        ask(s, counts["asked"])
        read(replies, counts["asked"])
        counts["asked"] += 1
        time.sleep(0.0005)


def sender():
    s = connect()
    replies = s.makefile("rb")
    reader = threading.Thread(target=tried, args=(answers, replies), daemon=True)
    reader.start()
    while not all_sent.is_set():
        time.sleep(0.01)
        if done.is_set():
            all_sent.set()
        counts["sent"] += 1
        ask(s, counts["sent"] - 1)
    reader.join(20)
    assert counts["answered"] == counts["sent"], counts


def answers(replies):
    while not (all_sent.is_set() and counts["answered"] == counts["sent"]):
        read(replies, counts["answered"])
        counts["answered"] += 1


def tried(work, *args):
    try:
        work(*args)
    except BaseException as e:
        errors.append("%s: %r" % (work.__name__, e))
        raise


done, all_sent = threading.Event(), threading.Event()
counts, errors = {"asked": 0, "sent": 0, "answered": 0}, []
silent = kept_alive()
workers = [threading.Thread(target=tried, args=(work,), daemon=True) for work in (asker, sender)]
for worker in workers:
    worker.start()
print("ready", flush=True)
select.select([sys.stdin], [], [])
done.set()
for worker in workers:
    worker.join(25)
assert not errors and not any(worker.is_alive() for worker in workers), (counts, errors)
ask(silent, 7)
read(silent.makefile("rb"), 7)
print("all", counts, flush=True)
