"""Two connections to a redis that give up soon: one sends without a pause, one is silent. impatient.py HOST PORT; ends at a line on stdin."""
import select, socket, sys, threading, time

TIMEOUT_MS = 3000


def connect():
    s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return s


def ask(s, n):
    text = b"%016d" % n
    s.sendall(b"*2\r\n$4\r\nECHO\r\n$16\r\n" + text + b"\r\n")


def read(replies, n):
    kind, text = replies.readline(), replies.readline()
    assert kind == b"$16\r\n" and text == b"%016d\r\n" % n, (n, kind, text)


def answers():
    global answered
    for n in range(1 << 60):
        if done.is_set() and n == asked:
            return
        read(replies, n)
        answered = n + 1


sender, silent = connect(), connect()
sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, TIMEOUT_MS)
for option, value in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 3)):
    silent.setsockopt(socket.IPPROTO_TCP, option, value)
silent.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
replies = sender.makefile("rb")
done, asked, answered = threading.Event(), 0, 0
reader = threading.Thread(target=answers, daemon=True)
reader.start()
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    ask(sender, asked)
    asked += 1
    time.sleep(0.01)
end = time.time() + 20
while answered < asked and time.time() < end:
    assert reader.is_alive(), "no more answers after %d of %d" % (answered, asked)
    time.sleep(0.01)
assert answered == asked, "%d of %d answers" % (answered, asked)
ask(silent, 7)
read(silent.makefile("rb"), 7)
print("all %d answered" % asked, flush=True)
