"""What redis has closed, until standard input ends: orphans.py IPV4 IPV6. Prints `ready`, then `clean`."""
import socket
import subprocess
import sys
import time

PORT, CLOSED = 6379, 7
# More than the window of a client that reads nothing, less than redis may write at once.
SIZE, WINDOW = 40_000, 4096
body = bytes(i * 7 % 251 for i in range(SIZE))


def connect(host, window=None):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    connection = socket.socket(family, socket.SOCK_STREAM)
    if window:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    connection.settimeout(30)
    connection.connect((host, PORT))
    return connection


def rest(connection):
    return connection.makefile("rb").read()


def state(connection):
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


first = connect(sys.argv[1])
first.sendall(b"*3\r\n$3\r\nSET\r\n$6\r\norphan\r\n$%d\r\n%s\r\nQUIT\r\n" % (SIZE, body))
assert rest(first) == b"+OK\r\n+OK\r\n"
first.close()

clients = []
for host in sys.argv[1:]:
    # Closed with bytes to send: FIN_WAIT1.
    unread = connect(host, WINDOW)
    unread.sendall(b"GET orphan\r\nQUIT\r\n")
    clients.append(("unread", unread, b"$%d\r\n%s\r\n+OK\r\n" % (SIZE, body)))
    # Its FIN has come: FIN_WAIT2.
    half = connect(host)
    half.sendall(b"QUIT\r\n")
    clients.append(("half", half, b"+OK\r\n"))
    # Its FIN does not come: LAST_ACK.
    deaf = connect(host)
    deaf.sendall(b"PING\r\n")
    assert deaf.recv(7) == b"+PONG\r\n"
    drop = f"tcp sport {PORT} tcp dport {deaf.getsockname()[1]} drop"
    subprocess.run(["nft", "add table inet deaf; add chain inet deaf input { type filter hook input priority 0; }; add rule inet deaf input " + drop], check=True)
    deaf.shutdown(socket.SHUT_WR)
    clients.append(("deaf", deaf, b""))
print("ready", flush=True)
sys.stdin.read()

subprocess.run(["nft", "delete table inet deaf"], check=True)
for name, connection, expected in clients:
    got = rest(connection)
    if got != expected:
        sys.exit(f"{name} over {connection.family.name}: {len(got)} bytes, not the {len(expected)} that were sent")
    if name != "deaf":
        connection.shutdown(socket.SHUT_WR)
end = time.monotonic() + 10
for name, connection, _ in clients:
    while state(connection) != CLOSED:
        if time.monotonic() > end:
            sys.exit(f"{name} over {connection.family.name} does not end: state {state(connection)}")
        time.sleep(0.01)
    error = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        sys.exit(f"{name} over {connection.family.name}: error {error}")
print("clean", flush=True)
