"""What waits for a slow server (netmig-peer waiting), until standard input ends: waiting.py IPV4 IPV6. Prints `ready`, then `clean`."""
import socket
import subprocess
import sys
import time

PORT, TOLD, HEARS, GROUP, CONNECTS, OVER = 7600, 7601, 7602, "239.7.6.2", 7603, 7604
hosts = sys.argv[1:]
clients = []
for n, (host, size, ended) in enumerate([(hosts[v6], size, ended) for v6 in (0, 1) for size, ended in ((0, 0), (17, 0), (30_000, 0), (0, 1), (5000, 1))]):
    connection = socket.create_connection((host, PORT), timeout=30)
    body = bytes((n + i * 7) % 251 for i in range(size))
    connection.sendall(body)
    if ended:
        connection.shutdown(socket.SHUT_WR)
    clients.append((connection, body, ended))
# To the container their handshakes do not end, until they say something at the end.
silent = [40_601, 40_602]
subprocess.run(["nft", f"table inet silent {{ chain output {{ type filter hook output priority 0; tcp sport {{ {silent[0]}, {silent[1]} }} tcp flags & (syn | ack) == ack drop; }}; }}"], check=True)
clients += [(socket.create_connection((host, PORT), 30, ("", port)), b"", False) for host, port in zip(hosts, silent)]
# The container ends these first, and does not read them before it is told.
unread = bytes(i % 251 for i in range(7000))
for host in hosts:
    connection = socket.create_connection((host, OVER), timeout=30)
    connection.sendall(unread)
    if connection.recv(1) != b"":
        sys.exit("it says something where it only ends")
    connection.close()
connects = socket.create_server(("0.0.0.0", CONNECTS))
connects.settimeout(30)
print("ready", flush=True)
sys.stdin.read()

subprocess.run(["nft", "delete", "table", "inet", "silent"], check=True)
# What came before the moves and what comes now is one stream.
for n, (connection, body, ended) in enumerate(clients):
    if not ended:
        more = b"more" * 500
        connection.sendall(more)
        connection.shutdown(socket.SHUT_WR)
        clients[n] = (connection, body + more, True)
time.sleep(0.3)
told = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
told.settimeout(30)
told.sendto(b"accept", (hosts[0], TOLD))
for n, (connection, body, _) in enumerate(clients):
    answer = connection.makefile("rb").read()
    if answer != b"%d %d\n" % (len(body), sum(body)):
        sys.exit(f"connection {n}: {answer!r}, not {len(body)} {sum(body)}")
served = told.recv(100)
if served != b"%d %d %d" % (len(clients), len(hosts) * len(unread), len(hosts) * sum(unread)):
    sys.exit(f"{served!r}: not {len(clients)} were served, or of what was over not all was read")

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
