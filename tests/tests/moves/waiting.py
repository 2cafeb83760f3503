"""What waits for a slow server (netmig-peer waiting), until standard input ends: waiting.py IPV4 IPV6. Prints `ready`, then `clean`."""
import socket
import subprocess
import sys

PORT, TOLD, HEARS, GROUP, CONNECTS = 7600, 7601, 7602, "239.7.6.2", 7603
hosts = sys.argv[1:]
clients = []
for n, (host, size, ended) in enumerate([(hosts[v6], size, ended) for v6 in (0, 1) for size, ended in ((0, 0), (17, 0), (30_000, 0), (0, 1), (5000, 1))]):
    connection = socket.create_connection((host, PORT), timeout=30)
    body = bytes((n + i * 7) % 251 for i in range(size))
    connection.sendall(body)
    if ended:
        connection.shutdown(socket.SHUT_WR)
    clients.append((connection, body, ended))
connects = socket.create_server(("0.0.0.0", CONNECTS))
connects.settimeout(30)
print("ready", flush=True)
sys.stdin.read()

# What came before the moves and what comes now is one stream.
for n, (connection, body, ended) in enumerate(clients):
    if not ended:
        more = b"more" * 500
        connection.sendall(more)
        connection.shutdown(socket.SHUT_WR)
        clients[n] = (connection, body + more, True)
told = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
told.settimeout(30)
told.sendto(b"accept", (hosts[0], TOLD))
for n, (connection, body, _) in enumerate(clients):
    answer = connection.makefile("rb").read()
    if answer != b"%d %d\n" % (len(body), sum(body)):
        sys.exit(f"connection {n}: {answer!r}, not {len(body)} {sum(body)}")
served = told.recv(100)
if served != b"%d" % len(clients):
    sys.exit(f"{served!r} were served, not {len(clients)}")

group = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
group.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(clients[0][0].getsockname()[0]))
group.settimeout(10)
group.sendto(b"who", (GROUP, HEARS))
if group.recv(100) != b"heard":
    sys.exit("the group is not heard")

# Until now its SYN was dropped.
subprocess.run(["nft", "delete", "table", "ip", "deaf"], check=True)
connection, _ = connects.accept()
said = connection.makefile("rb").readline()
if said != b"connected\n":
    sys.exit(f"it says {said!r}")
print("clean", flush=True)
